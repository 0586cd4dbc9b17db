#include "kernels/pow2.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float16.h"
#include "kernels/ops.h"
#include "kernels/ref/shift.h"
#include "kernels/rounding.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

/* A block of random powers of two, some q and p 0. */
static void *powers(struct bcq_view *v, const struct bcq_spec *s, uint64_t seed) {
    void *block = matrix_bcq(v, s, seed);
    for (int r = 0; r < s->rows; r++) {
        uint16_t *super = (uint16_t *)(uintptr_t)v->row_scale + 2 * r;
        super[0] = f32_to_f16(ldexpf(1, -4 - (int)(random_next(&seed) % 5)));
        super[1] = f32_to_f16(r % 7 ? ldexpf(1, -6 - (int)(random_next(&seed) % 3)) : 0.0f);
        for (int i = 0; i < s->bits; i++)
            ((uint8_t *)(uintptr_t)v->shape)[r * s->bits + i] =
                (uint8_t)(1 << random_next(&seed) % 4);
        for (int g = 0; g < v->layout.n_groups; g++) {
            int q = (int)(random_next(&seed) % (unsigned)(s->scale_bits + 1));
            int p = (int)(random_next(&seed) % (unsigned)s->bias_bits);
            unsigned sign = random_next(&seed) % 2 ? ~0u : 1u;
            bcq_put((uint8_t *)(uintptr_t)v->q + (size_t)r * v->layout.q_stride, s->scale_bits, g,
                    q ? 1u << (q - 1) : 0);
            unsigned size = p ? 1u << (p - 1) : 0;
            bcq_put((uint8_t *)(uintptr_t)v->p + (size_t)r * v->layout.p_stride, s->bias_bits, g,
                    sign == 1u ? size : 0u - size);
        }
    }
    return block;
}

static const struct bcq_spec specs[] = {
    {BCQ_COMPACT, 37, 200, 3, 16, 4, 5, 0}, {BCQ_COMPACT, 20, 576, 2, 16, 4, 5, 0},
    {BCQ_COMPACT, 5, 129, 4, 24, 4, 5, 0},  {BCQ_COMPACT, 18, 300, 1, 100, 8, 8, 0},
    {BCQ_COMPACT, 9, 128, 3, 128, 1, 2, 0}, {BCQ_COMPACT, 3, 7, 4, 1, 3, 4, 0},
    {BCQ_COMPACT, 4, 260, 2, 260, 4, 5, 0},
};
enum { N_SPECS = sizeof specs / sizeof *specs, N = 5 };

static float *run(const struct bcq_ops *ops, const struct bcq_view *v, int act_bits, const float *x,
                  int n) {
    const struct bcq_spec *s = &v->spec;
    int blocks = (s->rows + ops->row_block - 1) / ops->row_block;
    void *packed = calloc(1, ops->pack_bytes(s));
    void *act = malloc(ops->act_bytes(act_bits, s->cols, n));
    float *y = malloc((size_t)n * (size_t)s->rows * sizeof *y);
    cr_assert(packed && act && y);
    ops->pack(packed, v, 0, blocks);
    for (int part = 0; part < 2; part++)
        ops->act_pack(act, act_bits, s, x, (size_t)s->cols, n, part, 2);
    ops->mul(y, (size_t)s->rows, packed, s, act, act_bits, n, blocks / 2, blocks);
    ops->mul(y, (size_t)s->rows, packed, s, act, act_bits, n, 0, blocks / 2);
    free(packed);
    free(act);
    return y;
}

/* The product of the same whole numbers with multiplications, span by span. */
static double product(const struct bcq_view *v, int row, const float *x, int act_bits) {
    const struct bcq_spec *s = &v->spec;
    float *w = malloc((size_t)s->cols * sizeof *w);
    double sum = 0;
    bcq_expand_row(v, row, w);
    for (int k = 0; k < s->cols; k += ROUNDING_SPAN) {
        float in[ROUNDING_SPAN] = {0}, whole[ROUNDING_SPAN];
        int n = s->cols - k < ROUNDING_SPAN ? s->cols - k : ROUNDING_SPAN;
        memcpy(in, x + k, (size_t)n * sizeof *in);
        double scale = (double)rounding_span(whole, in, act_bits), part = 0;
        for (int i = 0; i < n; i++) part += (double)w[k + i] * (double)whole[i];
        sum += scale * part;
    }
    free(w);
    return sum;
}

Test(pow2, shifts_give_the_ordinary_product_of_the_same_whole_numbers) {
    struct ops ops;
    ops_init_ref(&ops);
    for (int i = 0; i < N_SPECS; i++)
        for (int act_bits = 4; act_bits <= 8; act_bits += 4) {
            struct bcq_view v;
            uint64_t seed = 3;
            const struct bcq_spec *s = &specs[i];
            void *block = powers(&v, s, 11 + (uint64_t)i);
            cr_assert(pow2_ready(&v), "spec %d", i);
            float *x = malloc(N * (size_t)s->cols * sizeof *x);
            for (int k = 0; k < N * s->cols; k++) x[k] = matrix_normal(&seed);
            float *y = run(&ops.shift, &v, act_bits, x, N);
            float *last = run(&ops.shift, &v, act_bits, x + (N - 1) * s->cols, 1);
            for (int r = 0; r < s->rows; r++) {
                for (int t = 0; t < N; t++) /* Every number on the way is exact in double. */
                    cr_assert_eq(y[t * s->rows + r],
                                 (float)product(&v, r, x + t * s->cols, act_bits),
                                 "spec %d, act %d, row %d, token %d", i, act_bits, r, t);
                cr_assert_eq(last[r], y[(N - 1) * s->rows + r]);
            }
            free(x);
            free(y);
            free(last);
            free(block);
        }
}

Test(pow2, one_number_that_is_none_is_seen) {
    const struct bcq_spec *s = &specs[0];
    for (int what = 0; what < 6; what++) {
        struct bcq_view v;
        void *block = powers(&v, s, 4);
        uint16_t *super = (uint16_t *)(uintptr_t)v.row_scale + 2 * 36;
        uint8_t *q = (uint8_t *)(uintptr_t)v.q + 36 * v.layout.q_stride;
        uint8_t *p = (uint8_t *)(uintptr_t)v.p + 36 * v.layout.p_stride;
        cr_assert(pow2_ready(&v));
        if (what == 0) super[0] = f32_to_f16(0.75f);
        if (what == 1) super[1] = f32_to_f16(-0.5f);
        if (what == 2) ((uint8_t *)(uintptr_t)v.shape)[36 * 3 + 1] = 3;
        if (what == 3) bcq_put(q, 4, 12, 5);
        if (what == 4) bcq_put(p, 5, 12, 7);
        if (what == 5) bcq_put(p, 5, 12, 0u - 3u);
        cr_expect(!pow2_ready(&v), "case %d", what);
        free(block);
    }
    struct bcq_view v;
    const struct bcq_spec free_form = {BCQ_FREE, 4, 64, 2, 16, 0, 0, 0};
    void *block = matrix_bcq(&v, &free_form, 1);
    cr_expect(!pow2_ready(&v));
    free(block);
}

Test(pow2, inputs_that_are_not_finite_give_no_number) {
    struct ops ops;
    struct bcq_view v;
    ops_init_ref(&ops);
    const struct bcq_spec *s = &specs[0];
    void *block = powers(&v, s, 4);
    float x[200] = {[3] = 1, [150] = NAN};
    float *y = run(&ops.shift, &v, 8, x, 1);
    for (int r = 0; r < s->rows; r++) cr_expect(isnan(y[r]));
    free(y);
    free(block);
}
