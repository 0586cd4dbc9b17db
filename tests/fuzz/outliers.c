/* Bytes as a block of outliers: what outliers_parse() accepts must be safe to read and to pack. */
#include "kernels/outliers.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/sell.h"
#include "tests/fuzz/driver.h"

static void use(const struct outliers_view *v) {
    float *row = calloc((size_t)v->cols, sizeof *row);
    size_t bytes = sell_bytes(v);
    void *packed = bytes < 1 << 24 ? calloc(1, bytes) : NULL;
    if (row)
        for (int r = 0; r < v->rows && r < 64; r++) outliers_add_row(v, r, row);
    if (packed) sell_pack(packed, v);
    free(packed);
    free(row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct error err;
    struct outliers_view v;
    void *block;
    /* The end is the allocation's end, so that a sanitizer sees every step beyond it. */
    if (posix_memalign(&block, OUTLIERS_ALIGN, size ? size : 1) != 0) return 0;
    memcpy(block, data, size);
    if (outliers_parse(&v, block, size, &err) == 0) use(&v);
    free(block);
    return 0;
}
