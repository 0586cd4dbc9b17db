/* Bytes as a block of rotations: what rotation_parse() accepts must be safe to apply. */
#include "kernels/rotation.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "tests/fuzz/driver.h"

static void use(const struct rotation *r) {
    struct rotation_plan plan;
    if (r->n == 0 || r->n > 4096 || rotation_plan_init(&plan, r, NULL) < 0) return;
    double *x = calloc(2 * (size_t)r->n, sizeof *x);
    if (x) rotation_apply(&plan, x, x + r->n, false);
    free(x);
    rotation_plan_free(&plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct error err;
    struct rotation_view v;
    void *block;
    /* The end is the allocation's end, so that a sanitizer sees every step beyond it. */
    if (posix_memalign(&block, ROTATION_ALIGN, size ? size : 1) != 0) return 0;
    memcpy(block, data, size);
    if (rotation_parse(&v, block, size, &err) == 0) {
        use(&v.in);
        use(&v.out);
    }
    free(block);
    return 0;
}
