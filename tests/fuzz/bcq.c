/* Bytes as a binary-coded block: what bcq_parse() accepts must be safe to expand. */
#include "kernels/weights.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "tests/fuzz/driver.h"

static void expand(const struct bcq_view *v) {
    float *row = malloc((size_t)v->spec.cols * sizeof *row);
    if (!row) return;
    for (int i = 0; i < v->spec.rows && i < 64; i++) bcq_expand_row(v, i, row);
    bcq_expand_row(v, v->spec.rows - 1, row);
    free(row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct error err;
    struct bcq_view v;
    void *block;
    /* The end is the allocation's end, so that a sanitizer sees every step beyond it. */
    if (posix_memalign(&block, BCQ_ALIGN, size ? size : 1) != 0) return 0;
    memcpy(block, data, size);
    if (bcq_parse(&v, block, size, &err) == 0) expand(&v);
    free(block);
    return 0;
}
