#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rotation.h"
#include "tests/kernels/check.h"
#include "tests/support/random.h"

/* Every length of segments from one to several registers, with and without a basis. */
static const int sizes[] = {1,  2,   3,   8,   12,  16,  20,  24,  32,  36,  40,  44,   48,   64,
                            96, 128, 192, 256, 288, 320, 448, 512, 576, 704, 832, 1024, 1536, 4096};

struct made {
    struct rotation_plan exact;
    struct rotate_plan plan;
    uint32_t signs[128];
    float *basis;
};

static void made_init(struct made *m, int n, uint64_t seed) {
    struct rotation r = {0};
    if (rotation_choose(&r, n, NULL)) abort();
    for (int i = 0; i < 128; i++) m->signs[i] = (uint32_t)(random_next(&seed) >> 16);
    r.signs = m->signs;
    if (rotation_plan_init(&m->exact, &r, NULL)) abort();
    size_t order = (size_t)r.order;
    m->basis = calloc(2 * order * order, sizeof *m->basis);
    for (size_t i = 0; m->exact.basis && i < order; i++)
        for (size_t j = 0; j < order; j++)
            m->basis[i * order + j] = m->basis[(order + j) * order + i] =
                (float)m->exact.basis[i * order + j];
    m->plan = (struct rotate_plan){n,           r.order,
                                   n / r.order, (float)sqrt(1.0 / (n / r.order)),
                                   m->basis,    m->basis + order * order,
                                   m->signs};
}

static void check_size(struct check *c, int n, enum check_input input) {
    struct made m;
    made_init(&m, n, (uint64_t)n);
    struct fence x = check_floats((size_t)n, input, 7), tmp = fence_new((size_t)n * 4, 4);
    double *want = malloc(2 * (size_t)n * sizeof *want);
    for (int back = 0; back < 2; back++) {
        double d = 0, all = 0;
        for (int i = 0; i < n; i++) want[i] = (double)((float *)x.p)[i];
        rotation_apply(&m.exact, want, want + n, back);
        c->ops->rotate(x.p, tmp.p, &m.plan, back);
        for (int i = 0; i < n; i++) {
            double e = (double)((float *)x.p)[i] - want[i];
            d += e * e;
            all += want[i] * want[i];
        }
        if (input != INPUT_NOT_FINITE)
            check_expect(c, d <= 1e-12 * all, "%d, back %d: off by %g", n, back, sqrt(d / all));
        check_expect(c, fence_intact(&x) && fence_intact(&tmp), "%d: wrote outside", n);
    }
    free(want);
    free(m.basis);
    rotation_plan_free(&m.exact);
    fence_free(&x);
    fence_free(&tmp);
}

void check_rotate(struct check *c) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int input = 0; input < CHECK_N_INPUTS; input++)
            check_size(c, sizes[i], (enum check_input)input);
}
