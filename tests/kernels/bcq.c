#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"
#include "tests/support/matrix.h"

enum { MAX_N = 33, GAP = 3 /* columns of y that belong to nobody */ };
static const int counts[] = {1, 2, 3, 4, 5, 8, 11, 16, MAX_N};
enum { N_COUNTS = sizeof counts / sizeof *counts };
static const float untouched = -12345.5f;

/* What a matrix holds: anything, or parameters at their limits with all signs equal. */
enum codes { CODES_RANDOM, CODES_PLUS, CODES_MINUS };

/* A matrix packed by the level under test, and its rows in fp32. */
struct packed {
    struct bcq_view view;
    int act_bits;
    void *block;
    struct fence data;
    float *rows;    /* the weights */
    float *largest; /* largest_of() each row */
    float *offset;  /* the largest |beta| of each row */
    char name[96];
};

static const struct bcq_ops *ops_of(const struct check *c, const struct bcq_spec *s) {
    return s->kind == BCQ_WHOLE ? &c->ops->whole : &c->ops->bcq;
}

static int n_blocks(const struct check *c, const struct packed *m) {
    int unit = ops_of(c, &m->view.spec)->row_block;
    return (m->view.spec.rows + unit - 1) / unit;
}

/* The largest |alpha_1| + .. + |alpha_m| + |beta| of a row: no weight in it is larger. */
static float largest_of(const struct bcq_view *w, int row, float *offset) {
    float largest = 0;
    for (int g = 0; g < w->layout.n_groups; g++) {
        float alpha[BCQ_MAX_BITS], beta;
        if (w->spec.kind == BCQ_WHOLE) {
            float whole = fabsf(bcq_whole_scale(w, row, g)) * (float)(1 << (w->spec.bits - 1));
            if (whole > largest) largest = whole;
            continue;
        }
        bcq_group_params(w, row, g, alpha, &beta);
        float sum = fabsf(beta);
        if (sum > *offset) *offset = sum;
        for (int i = 0; i < w->spec.bits; i++) sum += fabsf(alpha[i]);
        if (sum > largest) largest = sum;
    }
    return largest;
}

static void packed_init(struct packed *m, struct check *c, const struct bcq_spec *s, int act_bits,
                        enum codes codes) {
    const struct bcq_ops *ops = ops_of(c, s);
    *m = (struct packed){.act_bits = act_bits};
    m->block = codes == CODES_RANDOM ? matrix_bcq(&m->view, s, 7)
                                     : matrix_bcq_extreme(&m->view, s, codes == CODES_MINUS);
    snprintf(m->name, sizeof m->name, "kind %d %dx%d bits %d group %d q%d p%d act %d", (int)s->kind,
             s->rows, s->cols, s->bits, s->group, s->scale_bits, s->bias_bits, act_bits);
    m->rows = malloc((size_t)s->rows * (size_t)s->cols * sizeof *m->rows);
    m->largest = malloc((size_t)s->rows * sizeof *m->largest);
    m->offset = calloc((size_t)s->rows, sizeof *m->offset);
    for (int r = 0; r < s->rows; r++) {
        bcq_expand_row(&m->view, r, m->rows + (size_t)r * (size_t)s->cols);
        m->largest[r] = largest_of(&m->view, r, &m->offset[r]);
    }
    m->data = fence_new(ops->pack_bytes(s), 64);
    int end = n_blocks(c, m), middle = end / 3;
    ops->pack(m->data.p, &m->view, middle, end);
    ops->pack(m->data.p, &m->view, 0, middle);
    check_expect(c, fence_intact(&m->data), "%s: pack() wrote outside", m->name);
}

static void packed_deinit(struct packed *m) {
    fence_free(&m->data);
    free(m->rows);
    free(m->largest);
    free(m->offset);
    free(m->block);
}

/* Each part sees its own tokens and nothing else, where it has whole tokens. */
static void pack_inputs(const struct packed *m, const struct bcq_ops *ops, void *act,
                        const float *x, int n, int n_parts) {
    const struct bcq_spec *s = &m->view.spec;
    const size_t cols = (size_t)s->cols;
    for (int part = n_parts - 1; part >= 0; part--) {
        struct fence own = fence_new((size_t)n * cols * sizeof(float), sizeof(float));
        int t0 = bcq_first_token(n, part, n_parts), t1 = bcq_first_token(n, part + 1, n_parts);
        for (int t = 0; t < n; t++) {
            bool seen = n_parts > n || (t >= t0 && t < t1);
            for (size_t i = (size_t)t * cols; i < (size_t)(t + 1) * cols; i++)
                ((float *)own.p)[i] = seen ? x[i] : NAN;
        }
        ops->act_pack(act, m->act_bits, s, own.p, cols, n, part, n_parts);
        fence_free(&own);
    }
}

/* Block b, in parts where that can be. */
static void multiply_block(const struct packed *m, const struct bcq_ops *ops, float *y, size_t ldy,
                           const void *act, int n, int b) {
    const struct bcq_spec *s = &m->view.spec;
    int most = ops->block_parts ? ops->block_parts(s, m->act_bits, n) : 1;
    int n_parts = most > 1 && b % 2 ? 2 : most;
    for (int part = n_parts - 1; part >= 0 && n_parts > 1; part--)
        ops->mul_part(y, ldy, m->data.p, s, act, m->act_bits, n, b, part, n_parts);
    if (n_parts == 1) ops->mul(y, ldy, m->data.p, s, act, m->act_bits, n, b, b + 1);
}

/* y: (n, rows + GAP), in ranges of blocks and n_parts of packing. */
static struct fence multiply(struct check *c, const struct packed *m, const float *x, int n,
                             int n_parts, bool whole) {
    const struct bcq_spec *s = &m->view.spec;
    const struct bcq_ops *ops = ops_of(c, s);
    size_t ldy = (size_t)s->rows + GAP, size = (size_t)n * ldy;
    struct fence act = fence_new(ops->act_bytes(m->act_bits, s->cols, n), 64);
    struct fence y = fence_new(size * sizeof(float), sizeof(float));
    for (size_t i = 0; i < size; i++) ((float *)y.p)[i] = untouched;
    pack_inputs(m, ops, act.p, x, n, n_parts);
    int end = n_blocks(c, m), a = whole ? end : end / 4, b = whole ? end : a + (end - a) / 2;
    for (int i = b; i < end; i++) multiply_block(m, ops, y.p, ldy, act.p, n, i);
    if (0 < a) ops->mul(y.p, ldy, m->data.p, s, act.p, m->act_bits, n, 0, a);
    if (a < b) ops->mul(y.p, ldy, m->data.p, s, act.p, m->act_bits, n, a, b);
    for (int t = 0; t < n; t++)
        for (int g = 0; g < GAP; g++)
            check_expect(c, ((float *)y.p)[(size_t)t * ldy + (size_t)(s->rows + g)] == untouched,
                         "%s: mul() wrote past row %d", m->name, s->rows);
    check_expect(c, fence_intact(&act) && fence_intact(&y), "%s: wrote outside", m->name);
    fence_free(&act);
    return y;
}

/* What mul() makes of n rows of x: kernels/rounding.h in the words of its comment. */
static void round_inputs(float *x, int n, int cols, int act_bits) {
    for (int t = 0; t < n; t++, x += cols)
        for (int k = 0; k < cols; k += 128) {
            int end = k + 128 < cols ? k + 128 : cols;
            float largest = 0, limit = act_bits == 8 ? 125 : 7;
            for (int i = k; i < end; i += act_bits == 8 ? 4 : 1) {
                float v[4] = {0};
                for (int j = 0; j < (act_bits == 8 ? 4 : 1) && i + j < end; j++)
                    v[j] = fabsf(x[i + j]);
                float sum = (v[0] + v[1]) + (v[2] + v[3]);
                if (sum > largest) largest = sum;
            }
            float up = limit / largest, scale = largest / limit;
            for (int i = k; i < end; i++)
                x[i] = largest > 1e-30f ? (float)lrintf(x[i] * up) * scale : 0;
        }
}

/* Against fp64, for each element and over all. Sums of whole numbers over planes are exact: then
 * the parameters' fp32 and the offsets' share are all that may err. adverse: x is made of what
 * rounding loses. */
static void compare(struct check *c, const struct packed *m, const float *x, const float *y, int n,
                    bool ordinary, bool adverse) {
    const struct bcq_spec *s = &m->view.spec;
    double all = 0, wrong = 0, lost = adverse ? 2e-3 + 1e-6 * s->cols : 2e-4;
    double lost_offset = adverse ? lost : 1e-4;
    for (int t = 0; t < n; t++) {
        for (int r = 0; r < s->rows; r++) {
            const float *w = m->rows + (size_t)r * (size_t)s->cols;
            const float *in = x + (size_t)t * (size_t)s->cols;
            double sum = 0, size = 0, plain = 0, nothing = 0;
            for (int k = 0; k < s->cols; k++) {
                sum += (double)w[k] * (double)in[k];
                size += (double)m->largest[r] * fabs((double)in[k]);
                plain += (double)m->offset[r] * fabs((double)in[k]);
                if (fabsf(in[k]) <= 1e-30f) nothing += (double)m->largest[r] * fabs((double)in[k]);
            }
            double bound = m->act_bits < 16 ? 4e-6 * size + lost_offset * plain : lost * size;
            double d = (double)y[(size_t)t * (size_t)(s->rows + GAP) + (size_t)r] - sum;
            check_expect(c, fabs(d) <= bound + nothing + 1e-37,
                         "%s: row %d token %d of %d is off by %g of %g", m->name, r, t, n, d, size);
            all += sum * sum;
            wrong += d * d;
        }
    }
    check_expect(c, !ordinary || wrong <= 1.1e-4 * 1.1e-4 * all, "%s: relative error %g", m->name,
                 sqrt(wrong / all));
}

/* Products with inputs rounded to 8 bits, from those with the inputs as they were: 1.2e-2 to 1.3e-2 of wide
 * matrices, up to 1.55e-2 of narrow ones. */
static void expect_fast(struct check *c, const struct packed *m, const float *x, const float *y,
                        int n) {
    const struct bcq_spec *s = &m->view.spec;
    double all = 0, wrong = 0;
    for (int t = 0; t < n; t++)
        for (int r = 0; r < s->rows; r++) {
            const float *w = m->rows + (size_t)r * (size_t)s->cols;
            double sum = 0;
            for (int k = 0; k < s->cols; k++)
                sum += (double)w[k] * (double)x[(size_t)t * (size_t)s->cols + (size_t)k];
            double d = (double)y[(size_t)t * (size_t)(s->rows + GAP) + (size_t)r] - sum;
            all += sum * sum;
            wrong += d * d;
        }
    check_expect(c, wrong <= 1.6e-2 * 1.6e-2 * all, "%s: relative error %g with its inputs rounded",
                 m->name, sqrt(wrong / all));
}

static void expect_equal_tokens(struct check *c, const struct packed *m, const float *a,
                                const float *b, int n, const char *what) {
    size_t ldy = (size_t)m->view.spec.rows + GAP;
    for (int t = 0; t < n; t++)
        check_expect(c, check_same(a + (size_t)t * ldy, b + (size_t)t * ldy, ldy - GAP),
                     "%s: token %d differs %s (%d)", m->name, t, what, n);
}

static void check_matrix(struct check *c, const struct bcq_spec *s, int act_bits,
                         enum check_input input, enum codes codes) {
    struct packed m;
    packed_init(&m, c, s, act_bits, codes);
    struct fence x = check_floats(MAX_N * (size_t)s->cols, input, 3);
    struct fence y = multiply(c, &m, x.p, MAX_N, 1, true);
    bool ordinary = input == INPUT_NORMAL && codes == CODES_RANDOM && s->rows * s->cols >= 64;
    if (check_finite(input)) {
        size_t size = MAX_N * (size_t)s->cols * sizeof(float);
        float *seen = memcpy(malloc(size), x.p, size);
        if (act_bits < 16) round_inputs(seen, MAX_N, s->cols, act_bits);
        compare(c, &m, seen, y.p, MAX_N, ordinary, input == INPUT_HALF_STEPS);
        free(seen);
        if (act_bits == 8 && ordinary) expect_fast(c, &m, x.p, y.p, MAX_N);
    }
    for (int i = 0; i < N_COUNTS; i++) {
        /* The last tokens, so that the rows end at the fence. */
        size_t from = (size_t)(MAX_N - counts[i]);
        const float *in = (const float *)x.p + from * (size_t)s->cols;
        struct fence some = multiply(c, &m, in, counts[i], 1 + i % 3, false);
        const float *whole = (const float *)y.p + from * (size_t)(s->rows + GAP);
        expect_equal_tokens(c, &m, some.p, whole, counts[i], "from itself in a batch");
        fence_free(&some);
    }
    fence_free(&x);
    fence_free(&y);
    packed_deinit(&m);
}

/* A token with NaN in it must leave its neighbours alone. */
static void check_neighbours(struct check *c, const struct bcq_spec *s, int act_bits) {
    struct packed m;
    packed_init(&m, c, s, act_bits, CODES_RANDOM);
    struct fence x = check_floats(5 * (size_t)s->cols, INPUT_NORMAL, 3);
    struct fence good = multiply(c, &m, x.p, 5, 1, true);
    check_fill((float *)x.p + 2 * s->cols, (size_t)s->cols, INPUT_NOT_FINITE, 9);
    struct fence bad = multiply(c, &m, x.p, 5, 1, true);
    size_t ldy = (size_t)s->rows + GAP;
    expect_equal_tokens(c, &m, good.p, bad.p, 2, "beside a NaN");
    expect_equal_tokens(c, &m, (float *)good.p + 3 * ldy, (float *)bad.p + 3 * ldy, 2,
                        "beside a NaN");
    fence_free(&x);
    fence_free(&good);
    fence_free(&bad);
    packed_deinit(&m);
}

static void check_spec(struct check *c, struct bcq_spec s, int act_bits, int turn) {
    for (int i = 0; i < 3; i++) {
        s.rows = check_sizes[(turn * 5 + i * 7) % CHECK_N_SIZES];
        s.cols = check_sizes[(turn + i * 11) % CHECK_N_SIZES];
        int group = s.group;
        if (!s.group || s.group > s.cols) s.group = s.cols; /* 0: whole rows */
        check_matrix(c, &s, act_bits,
                     i ? (enum check_input)((turn + i) % CHECK_N_PRODUCT_INPUTS) : INPUT_NORMAL,
                     CODES_RANDOM);
        s.group = group;
    }
}

static void check_all(struct check *c, int act_bits) {
    static const int groups[] = {16, 128, 32, 64, 8, 1, 24, 100, 256, 0};
    static const int widths[][2] = {{4, 5}, {1, 2}, {8, 8}, {6, 6}, {5, 7}, {3, 4}};
    int turn = 0;
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++) {
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
            if (turn % c->every) {
                turn++;
                continue;
            }
            const int *w = widths[turn % 6];
            struct bcq_spec s = {BCQ_COMPACT, 1, 1, bits, groups[g], w[0], w[1], 0};
            check_spec(c, s, act_bits, turn);
            s.kind = BCQ_COMPACT_GROUP;
            s.n_shapes = turn % 3 ? 1 + turn * 37 % 256 : 1;
            check_spec(c, s, act_bits, turn + 1);
            check_spec(c, (struct bcq_spec){BCQ_FREE, 1, 1, bits, groups[g], 0, 0, 0}, act_bits,
                       turn + 2);
            turn++;
        }
        /* Real shapes, every input, and the largest sums that the format allows. */
        for (int i = bits % c->every; i < CHECK_N_PRODUCT_INPUTS; i += c->every) {
            enum check_input input = (enum check_input)i;
            const struct bcq_spec compact = {BCQ_COMPACT, 100, 576, bits, 16, 4, 5, 0};
            const struct bcq_spec wide = {BCQ_COMPACT_GROUP, 70, 512, bits, 16, 8, 8, 256};
            const struct bcq_spec free_form = {BCQ_FREE, 100, 576, bits, 128, 0, 0, 0};
            check_matrix(c, &compact, act_bits, input, CODES_RANDOM);
            check_matrix(c, &compact, act_bits, input, CODES_PLUS);
            check_matrix(c, &compact, act_bits, input, CODES_MINUS);
            check_matrix(c, &wide, act_bits, input, i % 2 ? CODES_PLUS : CODES_MINUS);
            check_matrix(c, &free_form, act_bits, input, CODES_PLUS);
            check_matrix(c, &free_form, act_bits, input, CODES_MINUS);
        }
        /* More inputs than kernels keep offsets of at a time. */
        if (bits % c->every == 0) {
            const struct bcq_spec long_rows = {BCQ_COMPACT, 20, 16600, bits, 16, 4, 5, 0};
            check_matrix(c, &long_rows, act_bits, INPUT_NORMAL, CODES_RANDOM);
        }
        check_neighbours(c, &(struct bcq_spec){BCQ_COMPACT, 100, 576, bits, 16, 4, 5, 0}, act_bits);
        check_neighbours(c, &(struct bcq_spec){BCQ_FREE, 100, 576, bits, 64, 0, 0, 0}, act_bits);
    }
}

void check_whole(struct check *c) {
    for (int bits = 2; bits <= BCQ_MAX_PLANES; bits++) {
        struct bcq_spec s = {BCQ_WHOLE, 1, 1, bits, BCQ_WHOLE_GROUP, 0, 0, 0};
        for (int i = 0; i < CHECK_N_SIZES; i++) {
            s.rows = check_sizes[(i * 5 + bits) % CHECK_N_SIZES];
            s.cols = check_sizes[i];
            check_matrix(c, &s, 16, (enum check_input)((i + bits) % CHECK_N_PRODUCT_INPUTS),
                         CODES_RANDOM);
        }
        s.rows = 100;
        s.cols = 576;
        for (int i = 0; i < CHECK_N_PRODUCT_INPUTS; i++)
            for (enum codes codes = CODES_RANDOM; codes <= CODES_MINUS; codes++)
                check_matrix(c, &s, 16, (enum check_input)i, codes);
        check_neighbours(c, &s, 16);
    }
}

void check_bcq(struct check *c) { check_all(c, 16); }
void check_bcq_act8(struct check *c) { check_all(c, 8); }
void check_bcq_act4(struct check *c) { check_all(c, 4); }
