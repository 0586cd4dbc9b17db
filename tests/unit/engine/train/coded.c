/* A coded matrix as variables: the same weights as the stored form's specification, gradients as the
 * brute sum over weights, and every state storable. */
#include "engine/train/coded.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/pack.h"
#include "kernels/float16.h"
#include "tests/support/random.h"

enum { ROWS = 19, COLS = 83, BITS = 3, PLACES = ROWS * COLS };

static const uint8_t shapes[] = {1, 2, 4, 3, 5, 9};

static const struct bcq_spec specs[] = {
    {.kind = BCQ_COMPACT,
     .rows = ROWS,
     .cols = COLS,
     .bits = BITS,
     .group = 16,
     .scale_bits = 4,
     .bias_bits = 5},
    {.kind = BCQ_COMPACT_GROUP,
     .rows = ROWS,
     .cols = COLS,
     .bits = BITS,
     .group = 24,
     .scale_bits = 6,
     .bias_bits = 6,
     .n_shapes = 2},
    {.kind = BCQ_FREE, .rows = ROWS, .cols = COLS, .bits = BITS, .group = 64},
    {.kind = BCQ_FREE, .rows = ROWS, .cols = COLS, .bits = 1, .group = COLS},
};
enum { N_SPECS = sizeof specs / sizeof *specs };

static float uniform(uint64_t *state) { return (float)(random_next(state) >> 40) / 16777216.0f; }

/* A block of plausible parameters and random codes; one group of row 2 is without spread. */
static void *random_block(struct bcq_view *v, const struct bcq_spec *spec, uint64_t seed) {
    struct bcq_layout layout;
    bcq_layout(&layout, spec);
    void *block = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    cr_assert(block);
    memset(block, 0, (size_t)layout.total);
    bcq_format(v, block, spec);
    if (spec->kind == BCQ_COMPACT_GROUP) pack_shape_table(v, shapes);
    for (int row = 0; row < ROWS; row++) {
        struct pack_group groups[COLS];
        uint8_t codes[COLS];
        for (int g = 0; g < layout.n_groups; g++) {
            groups[g] = (struct pack_group){
                .shape = spec->kind == BCQ_COMPACT ? 1 : g % 2,
                .scale = row == 2 && g == 1 ? 0.0f : 0.02f + 0.1f * uniform(&seed),
                .bias = uniform(&seed) - 0.5f};
            for (int i = 0; i < BITS; i++) groups[g].alpha[i] = 0.1f * (float)(i + 1);
        }
        for (int k = 0; k < COLS; k++)
            codes[k] = (uint8_t)random_range(&seed, 0, (1 << spec->bits) - 1);
        pack_row(v, row, groups, shapes);
        pack_codes(v, row, codes);
    }
    return block;
}

static struct coded *new_coded(const struct bcq_view *v, float share) {
    struct coded *c = NULL;
    struct error *none = NULL;
    cr_assert_eq(coded_new(&c, v, share, none), 0);
    return c;
}

static void check_expansion(const struct coded *c, const struct bcq_view *v) {
    static float w[PLACES];
    float row[COLS];
    coded_expand(c, w, 2);
    for (int r = 0; r < ROWS; r++) {
        bcq_expand_row(v, r, row);
        for (int k = 0; k < COLS; k++) cr_assert_float_eq(w[r * COLS + k], row[k], 1e-6);
    }
}

Test(coded, expands_to_what_is_stored) {
    for (int i = 0; i < N_SPECS; i++) {
        struct bcq_view v;
        void *block = random_block(&v, &specs[i], 3), *copy;
        struct coded *c = new_coded(&v, 1.0f);
        size_t n;
        check_expansion(c, &v);
        coded_keep(c);
        cr_assert_eq(coded_block(c, &copy, &n, NULL), 0);
        cr_assert_eq(n, v.layout.total);
        cr_assert_arr_eq(copy, block, n, "nothing moved: nothing changes");
        free(copy);
        coded_free(c);
        free(block);
    }
}

static int bit_of(const struct bcq_view *v, int row, int plane, int k) {
    size_t words = (size_t)v->layout.plane_words;
    return v->planes[((size_t)row * (size_t)v->spec.bits + (size_t)plane) * words +
                     (size_t)k / 32] >>
               k % 32 &
           1;
}

/* d loss / d alpha_i and beta of a group, weight by weight. */
static void brute_group(const struct bcq_view *v, int row, int group, const float *dw,
                        double *dalpha, double *dbeta) {
    *dbeta = 0.0;
    memset(dalpha, 0, BCQ_MAX_BITS * sizeof *dalpha);
    for (int k = group * v->spec.group; k < (group + 1) * v->spec.group && k < COLS; k++) {
        double d = (double)dw[row * COLS + k];
        *dbeta += d;
        for (int i = 0; i < v->spec.bits; i++) dalpha[i] += bit_of(v, row, i, k) ? d : -d;
    }
}

/* After a first step the first moments are a tenth of gradient times unit. */
static void check_moment(double got, double gradient, double unit) {
    double want = 0.1 * gradient * unit;
    cr_assert_float_eq(got, want, 1e-6 + 1e-4 * fabs(want));
}

static void check_gradients(struct coded *c, const struct bcq_view *v, const float *dw) {
    size_t n;
    const float *m = coded_state(c, &n);
    bool is_free = v->spec.kind == BCQ_FREE;
    int bits = v->spec.bits, each = is_free ? bits + 1 : 2;
    m += n / 3;
    for (int row = 0; row < ROWS; row++) {
        double ds0 = 0.0, ds1 = 0.0;
        for (int group = 0; group < v->layout.n_groups; group++, m += each) {
            double dalpha[BCQ_MAX_BITS], dbeta, half = 0.0, dscale = 0.0;
            float alpha[BCQ_MAX_BITS], beta;
            int d[BCQ_MAX_BITS], q, p;
            brute_group(v, row, group, dw, dalpha, &dbeta);
            bcq_group_params(v, row, group, alpha, &beta);
            for (int i = 0; i < bits; i++) half += 0.5 * fabs((double)alpha[i]);
            if (is_free) {
                for (int i = 0; i < bits; i++)
                    check_moment((double)m[i], dalpha[i], fabs((double)alpha[i]));
                check_moment((double)m[bits], dbeta, half);
                continue;
            }
            bcq_group_codes(v, row, group, d, &q, &p);
            double s0 = (double)f16_to_f32(v->row_scale[2 * row]);
            double s1 = (double)f16_to_f32(v->row_scale[2 * row + 1]);
            for (int i = 0; i < bits; i++) dscale += dalpha[i] * 0.5 * d[i];
            check_moment((double)m[0], dscale * s0, q);
            check_moment((double)m[1], dbeta * s1, half / s1);
            ds0 += dscale * q;
            ds1 += dbeta * p;
        }
        if (is_free) continue;
        const float *all = coded_state(c, &n) + n / 3;
        const float *super = all + (size_t)(ROWS * v->layout.n_groups * each) + 2 * row;
        check_moment((double)super[0], ds0, 0.5 * (double)f16_to_f32(v->row_scale[2 * row]));
        check_moment((double)super[1], ds1, 0.5 * (double)f16_to_f32(v->row_scale[2 * row + 1]));
    }
}

static float *random_gradient(uint64_t seed) {
    float *dw = malloc(PLACES * sizeof *dw);
    cr_assert(dw);
    for (int i = 0; i < PLACES; i++) dw[i] = uniform(&seed) - 0.5f;
    return dw;
}

Test(coded, gradients_are_sums_over_weights) {
    for (int i = 0; i < N_SPECS; i++) {
        struct bcq_view v;
        void *block = random_block(&v, &specs[i], 5);
        float *dw = random_gradient(6);
        struct coded *c = new_coded(&v, 0.5f);
        struct adam_step step = {.rate = 1e-3f, .step = 1, .n_threads = 2};
        coded_add_gradient(c, dw, 2);
        coded_move(c, &step);
        check_gradients(c, &v, dw);
        coded_free(c);
        free(block);
        free(dw);
    }
}

/* Whatever the steps, what is kept parses and is what the network saw. */
Test(coded, every_state_can_be_stored) {
    for (int i = 0; i < N_SPECS; i++) {
        struct bcq_view v, after;
        void *block = random_block(&v, &specs[i], 8), *made;
        float *dw = random_gradient(9);
        struct coded *c = new_coded(&v, 1.0f);
        struct error *none = NULL;
        size_t n;
        for (int k = 1; k <= 30; k++) {
            struct adam_step step = {.rate = 0.1f, .step = k, .n_threads = 1};
            coded_add_gradient(c, dw, 1);
            coded_move(c, &step);
        }
        coded_keep(c);
        cr_assert_eq(coded_block(c, &made, &n, none), 0);
        cr_assert_eq(bcq_parse(&after, made, n, none), 0);
        check_expansion(c, &after);
        cr_assert_neq(memcmp(made, block, n), 0);
        coded_free(c);
        free(block);
        free(made);
        free(dw);
    }
}

/* Adam's first step goes against the gradient by rate * unit. */
Test(coded, moves_against_the_gradient_by_its_units) {
    struct bcq_view v;
    void *block = random_block(&v, &specs[2], 11);
    float *dw = random_gradient(12);
    struct coded *c = new_coded(&v, 0.0f);
    struct adam_step step = {.rate = 0.01f, .step = 1, .n_threads = 1};
    size_t n;
    coded_add_gradient(c, dw, 1);
    coded_move(c, &step);
    const float *x = coded_state(c, &n);
    for (int i = 0; i < BITS; i++)
        cr_assert_float_eq(fabsf(x[i] / (0.1f * (float)(i + 1)) - 1.0f), 0.01f, 1e-3);
    coded_back(c);
    check_expansion(c, &v);
    coded_free(c);
    free(block);
    free(dw);
}

Test(coded, row_share_zero_keeps_super_scales) {
    struct bcq_view v;
    void *block = random_block(&v, &specs[0], 13), *made;
    float *dw = random_gradient(14);
    struct bcq_view after;
    struct coded *c = new_coded(&v, 0.0f);
    struct adam_step step = {.rate = 0.3f, .step = 1, .n_threads = 1};
    size_t n;
    coded_add_gradient(c, dw, 1);
    coded_move(c, &step);
    coded_keep(c);
    cr_assert_eq(coded_block(c, &made, &n, NULL), 0);
    cr_assert_eq(bcq_parse(&after, made, n, NULL), 0);
    cr_assert_arr_eq(after.row_scale, v.row_scale, ROWS * 4);
    cr_assert_neq(memcmp(after.q, v.q, ROWS * v.layout.q_stride), 0);
    coded_free(c);
    free(block);
    free(made);
    free(dw);
}
