#include "kernels/weights.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/float16.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

static const struct bcq_spec compact = {BCQ_COMPACT, 5, 70, 3, 16, 4, 5, 0};
static const struct bcq_spec grouped = {BCQ_COMPACT_GROUP, 5, 70, 2, 32, 6, 6, 5};
static const struct bcq_spec free_form = {BCQ_FREE, 3, 33, 4, 16, 0, 0, 0};

Test(weights, fields_come_back_and_leave_their_neighbours_alone) {
    uint64_t state = 1;
    for (int width = 1; width <= 8; width++) {
        uint8_t fields[40] = {0};
        unsigned want[30];
        for (int i = 0; i < 30; i++) want[i] = (unsigned)random_next(&state) & ((1u << width) - 1);
        /* Bits above the width are cut off, and old bits are replaced. */
        for (int i = 29; i >= 0; i--) bcq_put(fields, width, i, ~want[i]);
        for (int i = 0; i < 30; i++) bcq_put(fields, width, i, want[i] | ~0u << width);
        for (int i = 0; i < 30; i++) {
            int sign = want[i] >> (width - 1) ? 1 << width : 0;
            cr_assert_eq(bcq_get(fields, width, i), want[i]);
            cr_assert_eq(bcq_get_signed(fields, width, i), (int)want[i] - sign);
        }
        cr_expect_eq(fields[(30 * width + 7) / 8], 0);
    }
}

/* By hand from the definition in CHECKPOINT.md. */
Test(weights, sections_follow_each_other_at_multiples_of_64) {
    struct bcq_layout l;
    bcq_layout(&l, &compact);
    cr_expect_eq(l.n_groups, 5);
    cr_expect_eq(l.plane_words, 3);
    cr_expect_eq(l.q_stride, 3); /* 5 fields of 4 bits */
    cr_expect_eq(l.p_stride, 4);
    cr_expect_eq(l.planes, 128);
    cr_expect_eq(l.q, 320);         /* 5 * 3 * 3 * 4 = 180 bytes before */
    cr_expect_eq(l.p, 384);         /* 15 */
    cr_expect_eq(l.shape, 448);     /* 20 */
    cr_expect_eq(l.row_scale, 512); /* 15 */
    cr_expect_eq(l.total, 576);     /* 20 */
    cr_expect_eq(l.shape_table, 0);
    cr_expect_eq(l.alpha, 0);
    cr_expect_float_eq(bcq_bits_per_weight(&compact), 576.0 * 8 / 350, 1e-12);

    bcq_layout(&l, &grouped);
    cr_expect_eq(l.shape_bits, 3);
    cr_expect_eq(l.idx_stride, 2); /* 3 fields of 3 bits */
    cr_expect_eq(l.shape_table, l.shape + 64);

    bcq_layout(&l, &free_form);
    cr_expect_eq(l.q, 0);
    cr_expect_eq(l.alpha, 128 + 128); /* 3 * 4 * 2 * 4 = 96 bytes of planes */
    cr_expect_eq(l.beta, 256 + 128);  /* 3 * 3 * 4 * 2 = 72 */
    cr_expect_eq(l.total, 448);       /* 18 */
}

Test(weights, the_largest_matrix_does_not_overflow_its_layout) {
    struct bcq_layout l;
    const struct bcq_spec largest = {BCQ_FREE, BCQ_MAX_DIM, BCQ_MAX_DIM, 4, 1, 0, 0, 0};
    cr_assert_eq(bcq_check(&largest, NULL), 0);
    bcq_layout(&l, &largest);
    cr_expect_eq(l.beta, 128 + (1ull << 39) + (1ull << 43));
    cr_expect_eq(l.total, l.beta + (1ull << 41));
}

Test(weights, a_written_block_reads_back_the_same) {
    const struct bcq_spec *specs[] = {&compact, &grouped, &free_form};
    for (int i = 0; i < 3; i++) {
        struct bcq_view made, read;
        void *block = matrix_bcq(&made, specs[i], (uint64_t)i);
        cr_assert_eq(bcq_parse(&read, block, (size_t)made.layout.total, NULL), 0);
        cr_expect_arr_eq(&read.spec, &made.spec, sizeof made.spec);
        cr_expect_eq(read.planes, made.planes);
        cr_expect_eq(read.q, made.q);
        cr_expect_eq(read.p, made.p);
        cr_expect_eq(read.shape, made.shape);
        cr_expect_eq(read.shape_table, made.shape_table);
        cr_expect_eq(read.row_scale, made.row_scale);
        cr_expect_eq(read.alpha, made.alpha);
        cr_expect_eq(read.beta, made.beta);
        free(block);
    }
}

/* Some flips make another valid matrix, one row shorter in the same space for example; what is
 * accepted must be readable to its end. A refusal leaves the result alone. */
Test(weights, a_changed_header_bit_is_refused_or_harmless) {
    const struct bcq_spec *specs[] = {&compact, &grouped, &free_form};
    for (int i = 0; i < 3; i++) {
        struct bcq_view made, read;
        struct error err;
        int n_accepted = 0;
        uint8_t *block = matrix_bcq(&made, specs[i], 4);
        for (int bit = 0; bit < 8 * BCQ_HEADER_BYTES; bit++) {
            memset(&read, 0x5a, sizeof read);
            struct bcq_view before = read;
            block[bit / 8] ^= (uint8_t)(1 << bit % 8);
            int rc = bcq_parse(&read, block, (size_t)made.layout.total, &err);
            block[bit / 8] ^= (uint8_t)(1 << bit % 8);
            if (rc) {
                cr_expect_eq(rc, -EBADMSG);
                cr_assert_arr_eq(&read, &before, sizeof read);
                continue;
            }
            float row[128];
            n_accepted++;
            cr_assert(read.layout.total == made.layout.total && read.spec.cols <= 128);
            for (int r = 0; r < read.spec.rows; r++) bcq_expand_row(&read, r, row);
        }
        cr_expect(n_accepted < 16, "%d", n_accepted);
        cr_expect_eq(bcq_parse(&read, block, (size_t)made.layout.total - 1, &err), -EBADMSG);
        cr_expect_eq(bcq_parse(&read, block, 127, &err), -EBADMSG);
        cr_expect_eq(bcq_parse(&read, block, 0, &err), -EBADMSG);
        cr_expect_eq(bcq_parse(&read, block + 4, (size_t)made.layout.total, &err), -EBADMSG);
        free(block);
    }
}

static int parse(const struct bcq_view *v, const void *block) {
    struct bcq_view read;
    return bcq_parse(&read, block, (size_t)v->layout.total, NULL);
}

static void expect_refused_when(const struct bcq_view *v, void *block, const void *at, int value) {
    uint8_t *p = (uint8_t *)(uintptr_t)at, old = *p;
    *p = (uint8_t)value;
    cr_expect_eq(parse(v, block), -EBADMSG, "value %d", value);
    *p = old;
    cr_expect_eq(parse(v, block), 0);
}

Test(weights, values_that_kernels_cannot_bear_are_refused) {
    struct bcq_view v;
    void *block = matrix_bcq(&v, &compact, 4);
    uint8_t *shape = (uint8_t *)(uintptr_t)v.shape;
    expect_refused_when(&v, block, v.shape + 14, 0);
    expect_refused_when(&v, block, v.shape, 32);
    expect_refused_when(&v, block, (const uint8_t *)v.row_scale + 19, 0x7c);
    shape[3] = shape[4] = 31;
    shape[5] = 1;
    cr_expect_eq(parse(&v, block), 0); /* 63 in all is the limit */
    shape[5] = 2;
    cr_expect_eq(parse(&v, block), -EBADMSG);
    free(block);

    block = matrix_bcq(&v, &grouped, 4);
    expect_refused_when(&v, block, v.shape_table + 9, 0);
    expect_refused_when(&v, block, v.shape + 8, 0xff); /* an index of 7 */
    free(block);

    block = matrix_bcq(&v, &free_form, 4);
    expect_refused_when(&v, block, (const uint8_t *)v.alpha + 71, 0x7e);
    expect_refused_when(&v, block, (const uint8_t *)v.beta + 17, 0xfc);
    free(block);
}

Test(weights, specs_outside_the_ranges_name_the_field) {
    const struct {
        struct bcq_spec spec;
        const char *field;
    } cases[] = {
        {{BCQ_COMPACT, 0, 70, 3, 16, 4, 5, 0}, "rows"},
        {{BCQ_COMPACT, 5, BCQ_MAX_DIM + 1, 3, 16, 4, 5, 0}, "cols"},
        {{BCQ_COMPACT, 5, 70, 5, 16, 4, 5, 0}, "bits"},
        {{BCQ_COMPACT, 5, 70, 3, 71, 4, 5, 0}, "group"},
        {{BCQ_COMPACT, 5, 70, 3, 0, 4, 5, 0}, "group"},
        {{BCQ_COMPACT, 5, 70, 3, 16, 0, 5, 0}, "scale_bits"},
        {{BCQ_COMPACT, 5, 70, 3, 16, 4, 1, 0}, "bias_bits"},
        {{BCQ_COMPACT, 5, 70, 3, 16, 4, 9, 0}, "bias_bits"},
        {{BCQ_COMPACT, 5, 70, 3, 16, 4, 5, 1}, "n_shapes"},
        {{BCQ_COMPACT_GROUP, 5, 70, 3, 16, 4, 5, 0}, "n_shapes"},
        {{BCQ_COMPACT_GROUP, 5, 70, 3, 16, 4, 5, 257}, "n_shapes"},
        {{BCQ_FREE, 5, 70, 3, 16, 4, 0, 0}, "scale_bits"},
        {{(enum bcq_kind)5, 5, 70, 3, 16, 0, 0, 0}, "kind"},
        {{BCQ_WHOLE, 5, 70, 1, 32, 0, 0, 0}, "bits"},
        {{BCQ_WHOLE, 5, 70, 9, 32, 0, 0, 0}, "bits"},
        {{BCQ_WHOLE, 5, 70, 8, 16, 0, 0, 0}, "group"},
        {{BCQ_WHOLE, 5, 70, 8, 32, 4, 0, 0}, "scale_bits"},
        {{BCQ_WHOLE, 5, 70, 8, 32, 0, 0, 1}, "n_shapes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = {""};
        cr_expect_eq(bcq_check(&cases[i].spec, &err), -EINVAL);
        cr_expect(strstr(err.text, cases[i].field), "%s", err.text);
    }
}

/* alpha_i = s0 q d_i / 2 and beta = s1 p, worked out by hand. */
Test(weights, a_row_expands_by_the_formula) {
    const struct bcq_spec spec = {BCQ_COMPACT, 1, 5, 2, 3, 4, 5, 0};
    struct bcq_view v;
    void *block = matrix_bcq(&v, &spec, 1);
    uint32_t *planes = (uint32_t *)(uintptr_t)v.planes;
    uint16_t *scale = (uint16_t *)(uintptr_t)v.row_scale;
    uint8_t *d = (uint8_t *)(uintptr_t)v.shape;
    planes[0] = 0x15; /* + - + - + */
    planes[1] = 0x03; /* + + - - - */
    d[0] = 8;
    d[1] = 3;
    bcq_put((uint8_t *)(uintptr_t)v.q, 4, 0, 2);
    bcq_put((uint8_t *)(uintptr_t)v.q, 4, 1, 15);
    bcq_put((uint8_t *)(uintptr_t)v.p, 5, 0, 4);
    bcq_put((uint8_t *)(uintptr_t)v.p, 5, 1, 0x1f); /* -1 */
    scale[0] = f32_to_f16(0.5f);
    scale[1] = f32_to_f16(0.25f);
    /* Group 0: alpha = 4, 1.5, beta = 1. Group 1: alpha = 30, 11.25, beta = -0.25. */
    const float want[] = {6.5f, -1.5f, 3.5f, -41.5f, 18.5f};
    float row[5], alpha[BCQ_MAX_BITS], beta;
    bcq_expand_row(&v, 0, row);
    for (int i = 0; i < 5; i++) cr_expect_eq(row[i], want[i], "%d: %g", i, (double)row[i]);
    bcq_group_params(&v, 0, 1, alpha, &beta);
    cr_expect_eq(alpha[0], 30);
    cr_expect_eq(alpha[1], 11.25f);
    cr_expect_eq(beta, -0.25f);
    free(block);
}

/* The same matrix with free parameters has the same rows. */
Test(weights, kinds_agree_on_equal_parameters) {
    const struct bcq_spec *specs[] = {&compact, &grouped};
    for (int i = 0; i < 2; i++) {
        struct bcq_view v, w;
        void *block = matrix_bcq(&v, specs[i], 9);
        struct bcq_spec spec = v.spec;
        spec.kind = BCQ_FREE;
        spec.scale_bits = spec.bias_bits = spec.n_shapes = 0;
        void *copy = matrix_bcq(&w, &spec, 10);
        memcpy((uint32_t *)(uintptr_t)w.planes, v.planes,
               (size_t)spec.rows * (size_t)spec.bits * (size_t)v.layout.plane_words * 4);
        for (int r = 0; r < spec.rows; r++) {
            float a[70], b[70], alpha[BCQ_MAX_BITS], beta;
            for (int g = 0; g < v.layout.n_groups; g++) {
                size_t at = (size_t)r * (size_t)v.layout.n_groups + (size_t)g;
                bcq_group_params(&v, r, g, alpha, &beta);
                for (int j = 0; j < spec.bits; j++)
                    ((uint16_t *)(uintptr_t)w.alpha)[at * (size_t)spec.bits + (size_t)j] =
                        f32_to_f16(alpha[j]);
                ((uint16_t *)(uintptr_t)w.beta)[at] = f32_to_f16(beta);
            }
            bcq_expand_row(&v, r, a);
            bcq_expand_row(&w, r, b);
            for (int k = 0; k < spec.cols; k++) cr_assert_float_eq(a[k], b[k], 4e-4);
        }
        free(block);
        free(copy);
    }
}

/* s (c - 2^(m-1)), the planes being the bits of c; worked out by hand. */
Test(weights, whole_numbers_expand_by_the_formula) {
    const struct bcq_spec spec = {BCQ_WHOLE, 2, 33, 6, 32, 0, 0, 0};
    struct bcq_view v;
    float row[33];
    cr_assert_eq(bcq_check(&spec, NULL), 0);
    void *block = matrix_bcq(&v, &spec, 1);
    cr_expect_eq(v.layout.alpha, 128 + 128); /* 2 * 6 * 2 * 4 = 96 bytes of planes */
    cr_expect_eq(v.layout.total, 256 + 64);  /* 2 * 2 * 2 */
    cr_expect_eq(v.layout.beta, 0);
    uint32_t *planes = (uint32_t *)(uintptr_t)v.planes;
    uint16_t *scale = (uint16_t *)(uintptr_t)v.alpha;
    memset(planes, 0, 96);
    /* Row 1: c of input 0 is 63, of input 31 is 33, of input 32 is 2; all others 0. */
    for (int i = 0; i < 6; i++) planes[12 + 2 * i] = 1;
    planes[12] |= 1u << 31;
    planes[12 + 10] |= 1u << 31;
    planes[12 + 3] = 1;
    scale[2] = f32_to_f16(0.5f);
    scale[3] = f32_to_f16(-2);
    bcq_expand_row(&v, 1, row);
    cr_expect_eq(row[0], 15.5f);
    cr_expect_eq(row[1], -16);
    cr_expect_eq(row[31], 0.5f);
    cr_expect_eq(row[32], 60);
    bcq_whole_expand(&v, 1, 32, 1, row);
    cr_expect_eq(row[0], 60);
    expect_refused_when(&v, block, (const uint8_t *)v.alpha + 5, 0xfc);
    free(block);
}
