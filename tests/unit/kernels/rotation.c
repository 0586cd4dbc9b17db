#include "kernels/rotation.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/features.h"
#include "kernels/error.h"
#include "kernels/expand.h"
#include "kernels/weights.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

static const int sizes[] = {1,  2,  3,  12, 15, 20,  24,  28,  36,
                            44, 48, 52, 60, 64, 100, 172, 192, 255};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static uint32_t *random_signs(int n, uint64_t seed) {
    size_t words = ((size_t)n + 31) / 32;
    uint32_t *signs = malloc(words * sizeof *signs);
    cr_assert(signs);
    for (size_t i = 0; i < words; i++) signs[i] = (uint32_t)(random_next(&seed) >> 16);
    if (n % 32) signs[words - 1] &= (1u << n % 32) - 1;
    return signs;
}

static struct rotation choose(int n, const uint32_t *signs) {
    struct rotation r = {0};
    cr_assert_eq(rotation_choose(&r, n, NULL), 0, "%d", n);
    r.signs = signs;
    return r;
}

/* V, column by column. */
static double *matrix_of(const struct rotation *r) {
    struct rotation_plan p;
    int n = r->n;
    double *v = malloc((size_t)(n * n) * sizeof *v), *x = malloc(2 * (size_t)n * sizeof *x);
    cr_assert(v && x);
    cr_assert_eq(rotation_plan_init(&p, r, NULL), 0);
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < n; i++) x[i] = i == j;
        rotation_apply(&p, x, x + n, false);
        for (int i = 0; i < n; i++) v[i * n + j] = x[i];
    }
    rotation_plan_free(&p);
    free(x);
    return v;
}

Test(rotation, is_orthogonal_and_spreads_evenly) {
    for (int s = 0; s < N_SIZES; s++) {
        int n = sizes[s];
        uint32_t *signs = random_signs(n, (uint64_t)n);
        struct rotation r = choose(n, signs);
        double *v = matrix_of(&r), most = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                double dot = 0;
                for (int k = 0; k < n; k++) dot += v[i * n + k] * v[j * n + k];
                cr_assert(fabs(dot - (i == j)) < 1e-12, "%d: rows %d, %d", n, i, j);
                most = fmax(most, fabs(v[i * n + j]));
            }
        /* A Hadamard matrix has entries of one size; a cosine is up to sqrt(2) of that. */
        double bound = (r.basis == ROTATION_COSINE ? sqrt(2.0) : 1.0) / sqrt(n);
        cr_assert(most <= bound * (1 + 1e-12), "%d: an entry of %g", n, most);
        free(v);
        free(signs);
    }
}

/* Order 12 written down from the squares modulo 11, 1 3 4 5 9, and the sign of a Walsh function. */
Test(rotation, is_the_matrix_of_its_definition) {
    static const int square[11] = {0, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1};
    enum { N = 48, LENGTH = 4 };
    uint32_t *signs = random_signs(N, 5);
    struct rotation r = choose(N, signs);
    cr_assert(r.basis == ROTATION_PALEY1 && r.order == 12);
    double *v = matrix_of(&r);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            int a = i / LENGTH, c = j / LENGTH, b = i % LENGTH, d = j % LENGTH;
            int want = a == c || a == 0 ? 1 : c == 0 ? -1 : square[(a - c + 11) % 11];
            if (__builtin_popcount((unsigned)(b & d)) % 2) want = -want;
            if (signs[j / 32] >> j % 32 & 1) want = -want;
            cr_assert(fabs(v[i * N + j] - want / sqrt(48)) < 1e-13, "%d, %d", i, j);
        }
    free(v);
    free(signs);
}

Test(rotation, the_best_basis_is_chosen) {
    static const struct {
        int n, order;
        enum rotation_basis basis;
    } cases[] = {
        {256, 1, ROTATION_ONE},       {576, 36, ROTATION_PALEY2},   {1536, 12, ROTATION_PALEY1},
        {640, 20, ROTATION_PALEY1},   {896, 28, ROTATION_PALEY2},   {2816, 44, ROTATION_PALEY1},
        {11008, 43, ROTATION_COSINE}, {13824, 27, ROTATION_COSINE}, {6, 3, ROTATION_COSINE},
        {65536, 1, ROTATION_ONE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rotation r = choose(cases[i].n, NULL);
        cr_expect(r.order == cases[i].order && r.basis == cases[i].basis, "%d: %d of %d",
                  cases[i].n, (int)r.basis, r.order);
    }
    static const int refused[] = {257, 2 * 509, 1 << 17, 3 << 15};
    for (int i = 0; i < 4; i++) {
        struct rotation r;
        struct error err;
        cr_expect_eq(rotation_choose(&r, refused[i], &err), -ENOTSUP, "%d", refused[i]);
        cr_expect(strstr(err.text, "odd factor"), "%s", err.text);
    }
}

static void *block_new(struct rotation_view *v, int rows, int cols, bool both) {
    uint32_t *in = random_signs(cols, 1), *out = random_signs(rows, 2);
    struct rotation a = choose(cols, NULL), b = {0};
    if (both) b = choose(rows, NULL);
    size_t n = rotation_bytes(rows, cols, both);
    void *block = aligned_alloc(ROTATION_ALIGN, n);
    cr_assert(block);
    memset(block, 0, n);
    rotation_format(v, block, rows, cols, &a, both ? &b : NULL);
    memcpy((uint32_t *)(uintptr_t)v->in.signs, in, ((size_t)cols + 31) / 32 * 4);
    if (both) memcpy((uint32_t *)(uintptr_t)v->out.signs, out, ((size_t)rows + 31) / 32 * 4);
    free(in);
    free(out);
    return block;
}

static void refused_with(void *block, size_t n, size_t at, uint32_t value, const char *why) {
    uint32_t kept;
    struct rotation_view v;
    struct error err = {""};
    memcpy(&kept, (char *)block + at, 4);
    memcpy((char *)block + at, &value, 4);
    cr_expect_eq(rotation_parse(&v, block, n, &err), -EBADMSG, "%s", why);
    cr_expect(strstr(err.text, why), "'%s' does not say '%s'", err.text, why);
    memcpy((char *)block + at, &kept, 4);
}

Test(rotation, malformed_blocks_are_refused) {
    struct rotation_view v, w;
    struct error err = {""};
    void *block = block_new(&v, 24, 36, true);
    cr_expect_eq(rotation_parse(&w, block, v.total, &err), 0, "%s", err.text);
    cr_expect(rotation_same(&v.in, &w.in) && rotation_same(&v.out, &w.out));
    cr_expect_not(rotation_same(&v.in, &w.out));
    cr_expect_eq(rotation_parse(&w, block, 63, &err), -EBADMSG);
    cr_expect_eq(rotation_parse(&w, block, v.total - 64, &err), -EBADMSG);
    refused_with(block, v.total, 0, 0, "magic");
    refused_with(block, v.total, 4, 128, "contradicts");
    refused_with(block, v.total, 8, 0, "out of range");
    refused_with(block, v.total, 12, BCQ_MAX_DIM + 1, "out of range");
    refused_with(block, v.total, 12, 37, "inputs: 37 is not 36 times");
    refused_with(block, v.total, 16, 4, "inputs: no basis 4");
    refused_with(block, v.total, 16, ROTATION_ONE, "no basis 0 of order 36");
    refused_with(block, v.total, 20, 0, "no basis 2 of order 0");
    refused_with(block, v.total, 20, 0xffffffffu, "no basis 2 of order");
    refused_with(block, v.total, 24, 9, "outputs: no basis 9");
    refused_with(block, v.total, 28, 0, "contradicts");
    refused_with(block, v.total, 32, 128, "contradicts");
    refused_with(block, v.total, 48, 64, "contradicts");
    refused_with(block, v.total, 60, 1, "contradicts");
    refused_with(block, v.total, 64 + 4, 0x10, "signs past the last");
    refused_with(block, v.total, 64 + 8, 1u << 31, "signs past the last");
    free(block);
}

/* -- As part of a weight --------------------------------------------------------------------- */

static const char *const levels[] = {"ref", "avx2", "avx512", "amx"};

static struct backend *open_level(const char *level) {
    struct backend *be = NULL;
    unsigned features;
    if (features_parse(&features, level, NULL)) return NULL;
    struct backend_options options = {.name = "cpu", .level = level, .n_threads = 2};
    cr_assert_eq(backend_open(&be, &options, NULL), 0);
    return be;
}

/* A matrix that is stored between rotations, and the dense one that it stands for. */
struct turned {
    struct weight_view view;
    struct rotation_view rotation;
    void *codes, *block;
    float *dense; /* (rows, cols) */
};

static void turned_init(struct turned *t, int rows, int cols, bool turn, bool both) {
    struct bcq_spec spec = {BCQ_FREE, rows, cols, 3, cols < 32 ? cols : 32, 0, 0, 0};
    *t = (struct turned){.view = {.is_bcq = 1, .rows = rows, .cols = cols}};
    t->codes = matrix_bcq(&t->view.bcq, &spec, (uint64_t)(rows + cols));
    if (turn) {
        t->block = block_new(&t->rotation, rows, cols, both);
        t->view.rotation = &t->rotation;
    }
    t->dense = malloc((size_t)rows * (size_t)cols * sizeof *t->dense);
    cr_assert_eq(weight_expand(&t->view, 0, rows, t->dense, NULL), 0);
}

static void turned_free(struct turned *t) {
    free(t->codes);
    free(t->block);
    free(t->dense);
}

/* U^T W' V by dense matrices. */
Test(rotation, a_matrix_expands_to_the_product_of_three) {
    enum { ROWS = 24, COLS = 36 };
    for (int both = 0; both < 2; both++) {
        struct turned t;
        turned_init(&t, ROWS, COLS, true, both);
        double *v = matrix_of(&t.rotation.in);
        double *u = both ? matrix_of(&t.rotation.out) : NULL;
        static double half[ROWS][COLS];
        float row[COLS], some[2 * COLS];
        for (int r = 0; r < ROWS; r++) {
            bcq_expand_row(&t.view.bcq, r, row);
            for (int k = 0; k < COLS; k++) {
                half[r][k] = 0;
                for (int i = 0; i < COLS; i++) half[r][k] += (double)row[i] * v[i * COLS + k];
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int k = 0; k < COLS; k++) {
                double want = half[r][k];
                for (int i = 0; both && i < ROWS; i++)
                    want = (i ? want : 0) + u[i * ROWS + r] * half[i][k];
                cr_assert(fabs((double)t.dense[r * COLS + k] - want) < 1e-6, "%d, %d", r, k);
            }
        cr_assert_eq(weight_expand(&t.view, 5, 2, some, NULL), 0);
        for (int i = 0; i < 2 * COLS; i++) cr_assert_eq(some[i], t.dense[5 * COLS + i]);
        free(v);
        free(u);
        turned_free(&t);
    }
}

enum { COLS = 96, MOST = 150, N_SETS = 5 }; /* more tokens than a slice has */
static const int rows_of[N_SETS] = {48, 160, 24, 96, 64};

/* Five matrices on one input: plain, input turned, both turned, both turned, plain; the third and
 * fourth are added. */
static void run_set(struct backend *be, const struct turned *t, const struct weight_view *bias,
                    const float *x, int first, int n, float **y) {
    static int32_t zeros[MOST];
    struct batch batch = {n, 1, zeros, zeros, zeros, zeros, 1};
    struct linear_call calls[N_SETS];
    struct weight *w[2 * N_SETS];
    struct buffer *in = NULL, *out[N_SETS];
    cr_assert_eq(backend_buffer_new(be, &in, (size_t)n * COLS, NULL), 0);
    backend_buffer_write(be, in, 0, x + (size_t)first * COLS, (size_t)n * COLS);
    for (int i = 0; i < N_SETS; i++) {
        size_t size = (size_t)n * (size_t)rows_of[i];
        cr_assert_eq(backend_weight_new(be, &w[i], WEIGHT_LINEAR, &t[i].view, NULL), 0);
        cr_assert_eq(backend_weight_new(be, &w[N_SETS + i], WEIGHT_VECTOR, &bias[i], NULL), 0);
        cr_assert_eq(backend_buffer_new(be, &out[i], size, NULL), 0);
        for (size_t k = 0; k < size; k++) y[i][k] = (float)(k % 7);
        backend_buffer_write(be, out[i], 0, y[i], size);
        calls[i] = (struct linear_call){.dst = out[i],
                                        .w = w[i],
                                        .bias = w[N_SETS + i],
                                        .act = i == 2 ? ACT_RELU : ACT_NONE,
                                        .accumulate = i == 2 || i == 3};
    }
    backend_begin(be, &batch);
    backend_linear(be, calls, N_SETS, in);
    for (int i = 0; i < N_SETS; i++) {
        size_t size = (size_t)n * (size_t)rows_of[i];
        cr_assert_eq(backend_buffer_read(be, y[i], out[i], 0, size, NULL), 0);
        backend_buffer_free(be, out[i]);
        backend_weight_free(be, w[i]);
        backend_weight_free(be, w[N_SETS + i]);
    }
    backend_buffer_free(be, in);
}

static void check_set(const char *level, const struct turned *t, const struct weight_view *bias,
                      const float *x, float **y) {
    for (int i = 0; i < N_SETS; i++) {
        double off = 0, all = 0;
        for (int token = 0; token < MOST; token++)
            for (int r = 0; r < rows_of[i]; r++) {
                double sum = (double)((const float *)bias[i].data)[r];
                for (int k = 0; k < COLS; k++)
                    sum += (double)t[i].dense[r * COLS + k] * (double)x[token * COLS + k];
                if (i == 2 && sum < 0) sum = 0;
                size_t at = (size_t)token * (size_t)rows_of[i] + (size_t)r;
                double d = (double)y[i][at] - sum - (i == 2 || i == 3 ? (double)(at % 7) : 0);
                off += d * d;
                all += sum * sum;
            }
        cr_expect(off <= 4e-8 * all, "%s, matrix %d: off by %g", level, i, sqrt(off / all));
    }
}

Test(rotation, products_are_those_of_the_dense_matrices) {
    struct turned t[N_SETS];
    struct weight_view bias[N_SETS];
    void *values[N_SETS];
    float *y[N_SETS], *one[N_SETS];
    uint64_t seed = 3;
    float *x = malloc(sizeof *x * MOST * COLS);
    cr_assert(x);
    for (int i = 0; i < MOST * COLS; i++) x[i] = matrix_normal(&seed);
    for (int i = 0; i < N_SETS; i++) {
        turned_init(&t[i], rows_of[i], COLS, i > 0 && i<4, i> 1);
        values[i] = matrix_dense(&bias[i], DTYPE_F32, 1, rows_of[i], (uint64_t)i);
        y[i] = malloc(sizeof **y * MOST * (size_t)rows_of[i]);
        one[i] = malloc(sizeof **one * MOST * (size_t)rows_of[i]);
    }
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        struct backend *be = open_level(levels[l]);
        if (!be) continue;
        run_set(be, t, bias, x, 0, MOST, y);
        check_set(levels[l], t, bias, x, y);
        /* rows_of[i] tokens further on, destinations begin with other numbers: only those that
         * are not added compare. */
        run_set(be, t, bias, x, 131, 1, one);
        for (int i = 0; i < N_SETS; i++)
            if (i != 2 && i != 3)
                cr_expect_arr_eq(one[i], y[i] + 131 * rows_of[i],
                                 sizeof(float) * (size_t)rows_of[i], "%s, matrix %d: a token alone",
                                 levels[l], i);
        backend_close(be);
    }
    for (int i = 0; i < N_SETS; i++) {
        turned_free(&t[i]);
        free(values[i]);
        free(y[i]);
        free(one[i]);
    }
    free(x);
}
