/* Products with every kind of matrix, against sums in fp64. */
#include "tests/kernels/gpu.h"

#include <errno.h>

struct matrix {
    struct weight_view view;
    void *block, *beside;
    struct outliers_view outliers;
    struct rotation_view rotation;
    char name[96];
};

static void matrix_free(struct matrix *m) {
    free(m->block);
    free(m->beside);
}

/* (rows, cols) what it stands for. */
static float *expanded(const struct matrix *m) {
    size_t cols = (size_t)m->view.cols;
    float *w = malloc((size_t)m->view.rows * cols * sizeof *w);
    struct error err;
    for (int r = 0; !m->view.is_bcq && r < m->view.rows; r++)
        matrix_row(&m->view, r, w + (size_t)r * cols);
    if (m->view.is_bcq && weight_expand(&m->view, 0, m->view.rows, w, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    return w;
}

static void coded(struct matrix *m, const struct bcq_spec *s, bool extreme) {
    *m = (struct matrix){0};
    m->view.is_bcq = 1;
    m->block =
        extreme ? matrix_bcq_extreme(&m->view.bcq, s, false) : matrix_bcq(&m->view.bcq, s, 7);
    m->view.rows = s->rows;
    m->view.cols = s->cols;
    snprintf(m->name, sizeof m->name, "kind %d %dx%d bits %d group %d q%d p%d%s", (int)s->kind,
             s->rows, s->cols, s->bits, s->group, s->scale_bits, s->bias_bits,
             extreme ? " extreme" : "");
}

static void dense(struct matrix *m, enum dtype type, int rows, int cols) {
    *m = (struct matrix){0};
    m->block = matrix_dense(&m->view, type, rows, cols, 3);
    snprintf(m->name, sizeof m->name, "dense type %d %dx%d", (int)type, rows, cols);
}

static float activated(double v, enum activation act) {
    if (act == ACT_RELU && v < 0) v = 0;
    if (act == ACT_GELU_TANH)
        v *= 0.5 * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    return (float)v;
}

/* (n, rows) of n tokens from token `from` on. */
static float *multiply(const struct weight *w, const struct matrix *m, const struct weight *bias,
                       enum activation act, bool accumulate, const float *x, const float *old,
                       int n) {
    size_t rows = (size_t)m->view.rows, cols = (size_t)m->view.cols;
    struct some_batch b;
    batch_of(&b, n, 0);
    struct buffer *in = buffer_of(x, (size_t)n * cols), *out = buffer_of(old, (size_t)n * rows);
    struct linear_call call = {out, w, bias, act, accumulate};
    backend_begin(be, &b.batch);
    backend_linear(be, &call, 1, in);
    float *y = read_all(out, (size_t)n * rows);
    backend_buffer_free(be, in);
    backend_buffer_free(be, out);
    return y;
}

/* A token's inputs as the GPU's products take them: scaled by a power of two so that the largest is in
 * [2^13, 2^14), and rounded to fp16. */
static void rounded_row(float *to, const float *x, size_t cols) {
    float largest = 0;
    for (size_t k = 0; k < cols; k++) largest = fmaxf(largest, fabsf(x[k]));
    int e = largest > 0 ? 13 - ilogbf(largest) : 0;
    for (size_t k = 0; k < cols; k++) to[k] = ldexpf(f16_to_f32(f32_to_f16(ldexpf(x[k], e))), -e);
}

/* Products of x as it is, and of x as it is rounded. */
struct wanted {
    float *exact, *rounded;
};

static struct wanted wanted_of(const struct matrix *m, const float *bias, enum activation act,
                               const float *x, const float *old, size_t n) {
    size_t rows = (size_t)m->view.rows, cols = (size_t)m->view.cols;
    struct wanted w = {malloc(n * rows * sizeof(float)), malloc(n * rows * sizeof(float))};
    float *dense = expanded(m), *x_rounded = malloc(n * cols * sizeof *x_rounded);
    for (size_t t = 0; t < n; t++) rounded_row(x_rounded + t * cols, x + t * cols, cols);
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < 2 * n; i++) {
            size_t t = i / 2, at = t * rows + r;
            const float *in = (i % 2 ? x_rounded : x) + t * cols;
            double sum = bias ? (double)bias[r] : 0;
            for (size_t k = 0; k < cols; k++) sum += (double)dense[r * cols + k] * (double)in[k];
            (i % 2 ? w.rounded : w.exact)[at] = activated(sum, act) + (old ? old[at] : 0);
        }
    }
    free(dense);
    free(x_rounded);
    return w;
}

static void check_matrix(struct matrix *m, double tolerance, int turn) {
    static const int all[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64}, few[] = {1, 5, 9, 17};
    const int *counts = is_small() ? few : all;
    const size_t n_counts = is_small() ? sizeof few / sizeof *few : sizeof all / sizeof *all;
    const size_t most = is_small() ? 20 : 70;
    size_t rows = (size_t)m->view.rows, cols = (size_t)m->view.cols;
    float *x = normal(most * cols, 11 + (uint64_t)turn), *old = normal(most * rows, 12);
    if (turn % 3 == 1) /* outliers and sizes far from 1 in some tokens */
        for (size_t i = 0; i < most * cols; i++) {
            if (i % 97 == 0) x[i] *= 40;
            if (i / cols % 4 == 1) x[i] *= 1e-12f;
            if (i / cols % 4 == 2) x[i] *= 1e12f;
        }
    struct weight_view bias_view;
    void *bias_block = matrix_dense(&bias_view, DTYPE_BF16, 1, m->view.rows, 5);
    float *bias_row = malloc(rows * sizeof *bias_row);
    matrix_row(&bias_view, 0, bias_row);
    struct weight *w = weight_of(WEIGHT_LINEAR, &m->view);
    struct weight *bias = weight_of(WEIGHT_VECTOR, &bias_view);
    bool with_bias = turn % 2, accumulate = turn % 4 >= 2;
    enum activation act = turn % 3 == 1 ? ACT_NONE : (enum activation)(turn % 3);
    /* Nothing small would take these. */
    if (is_small()) setenv("GPTQT_GPU_WAY", "many", 1);
    float *y = multiply(w, m, with_bias ? bias : NULL, act, accumulate, x, old, (int)most);
    if (is_small()) unsetenv("GPTQT_GPU_WAY");
    struct wanted want =
        wanted_of(m, with_bias ? bias_row : NULL, act, x, accumulate ? old : NULL, most);
    for (size_t t = 0; t < most; t++) {
        /* Matrices that no tensor core takes have x as it is. */
        double d = fmin(distance(y + t * rows, want.rounded + t * rows, rows),
                        distance(y + t * rows, want.exact + t * rows, rows));
        expect(d <= tolerance * (rows < 16 ? 20 : 1), "%s: token %zu is off by %g", m->name, t, d);
    }
    for (size_t c = 0; c < n_counts; c++) {
        size_t from = most - (size_t)counts[c];
        float *some = multiply(w, m, with_bias ? bias : NULL, act, accumulate, x + from * cols,
                               old + from * rows, counts[c]);
        expect(!memcmp(some, y + from * rows, (size_t)counts[c] * rows * sizeof *y),
               "%s: %d tokens differ from themselves in a batch", m->name, counts[c]);
        free(some);
    }
    backend_weight_free(be, w);
    backend_weight_free(be, bias);
    free(y);
    free(want.exact);
    free(want.rounded);
    free(x);
    free(old);
    free(bias_row);
    free(bias_block);
    matrix_free(m);
}

static const int shapes[][2] = {{1, 16},    {16, 128}, {33, 200},  {7, 1000},
                                {130, 257}, {48, 31},  {64, 2048}, {129, 1300}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, SMALL_SHAPES = 6 };
/* Of those that are large enough to be slow. */
static bool is_too_large(int shape) { return is_small() && shape >= SMALL_SHAPES; }

/* Small cases have a group for each form, and one more that changes. */
static bool is_group_left_out(size_t g, int turn) {
    return is_small() ? g > 1 && is_left_out((int)g - 2) : is_left_out(turn);
}

/* The contract is 2e-4. On an H200 scales of fp16 met 5e-5 at worst, compact ones 2e-5, and the
 * emulation, whose sums round each addend to nearest, 2e-5 with both: tensor cores cut what lies
 * below the largest addend's last bits. */
static double tolerance_of(enum bcq_kind kind) { return kind == BCQ_FREE ? 1e-4 : 2e-5; }

static void check_coded(enum bcq_kind kind) {
    static const int groups[] = {16, 128, 64, 32, 48, 24, 100, 256, 0};
    static const int widths[][2] = {{4, 5}, {1, 2}, {4, 8}, {6, 6}, {3, 4}};
    int turn = 0;
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++, turn++) {
            if (is_group_left_out(g, turn)) continue;
            int shape = (turn * 3 + bits) % (is_small() ? SMALL_SHAPES : N_SHAPES);
            int width = turn % 5;
            struct bcq_spec s = {kind, shapes[shape][0], shapes[shape][1], bits, groups[g], 0, 0,
                                 0};
            if (!s.group || s.group > s.cols) s.group = s.cols;
            if (kind != BCQ_FREE) {
                s.scale_bits = widths[width][0];
                s.bias_bits = widths[width][1];
            }
            if (kind == BCQ_COMPACT_GROUP) s.n_shapes = turn % 2 ? 1 + turn : 256;
            struct matrix m;
            coded(&m, &s, false);
            check_matrix(&m, tolerance_of(kind), turn);
            if (g < 2 && !is_small()) {
                coded(&m, &s, true);
                check_matrix(&m, tolerance_of(kind), 2);
            }
        }
}

void check_compact(void) { check_coded(BCQ_COMPACT); }

/* Inputs that have room in some cards' shared memory and not in others': 8 tokens of 4096 are 64 KiB, a
 * row of 24064 on its way through a norm 100. */
void check_room(void) {
    static const int cols[] = {4096, 24064};
    for (int i = 0; i < 2; i++) {
        struct bcq_spec s = {BCQ_COMPACT, 16, cols[i], 2, 16, 4, 5, 0};
        struct matrix m;
        if (is_left_out(6) && is_left_out(i)) continue;
        coded(&m, &s, false);
        check_matrix(&m, tolerance_of(BCQ_COMPACT), 0);
    }
}
void check_shapes(void) { check_coded(BCQ_COMPACT_GROUP); }
void check_free(void) { check_coded(BCQ_FREE); }

/* Through fp16, which rounds what has more than 11 bits; a single row can be all cancellation. */
void check_whole(void) {
    static const int bits[] = {8, 6, 4, 2};
    for (int turn = 1; turn < N_SHAPES; turn++) {
        const struct bcq_spec s = {
            BCQ_WHOLE, shapes[turn][0], shapes[turn][1], bits[turn % 4], BCQ_WHOLE_GROUP, 0, 0, 0};
        struct matrix m;
        if (is_small() ? is_too_large(turn) : is_left_out(turn)) continue;
        coded(&m, &s, false);
        check_matrix(&m, 5e-4, turn);
    }
}

void check_dense(void) {
    int turn = 0;
    for (int type = 0; type < 3; type++)
        for (int i = 0; i < N_SHAPES; i++, turn++) {
            if (is_small() ? is_too_large(i) : is_left_out(turn)) continue;
            struct matrix m;
            dense(&m, (enum dtype)type, shapes[i][0], shapes[i][1]);
            check_matrix(&m, 4e-6, turn);
        }
}

/* Bytes on the device tell the form: fp16 lies in whole units. */
static void check_form(struct matrix *m, bool as_halves) {
    struct matrix half;
    dense(&half, DTYPE_F16, m->view.rows, m->view.cols);
    struct weight *w = weight_of(WEIGHT_LINEAR, &m->view);
    struct weight *reference = weight_of(WEIGHT_LINEAR, &half.view);
    size_t plain = (size_t)m->view.rows * (size_t)m->view.cols * dtype_size(m->view.type);
    size_t want = as_halves ? backend_weight_bytes(be, reference) : plain;
    expect(backend_weight_bytes(be, w) == want, "%s: %zu bytes, not %zu", m->name,
           backend_weight_bytes(be, w), want);
    backend_weight_free(be, w);
    backend_weight_free(be, reference);
    free(half.block);
    check_matrix(m, 4e-6, 0);
}

/* bf16 is taken by tensor cores where fp16 has its numbers; what is too large or too small for it, and
 * fp32 whatever its numbers, by ordinary instructions. */
void check_forms(void) {
    enum { ROWS = 17, COLS = 200 };
    if (is_left_out(1) && is_left_out(5)) return;
    for (int i = 0; i < 4; i++) {
        struct matrix m;
        dense(&m, i == 1 ? DTYPE_F32 : DTYPE_BF16, ROWS, COLS);
        float *f = m.block;
        uint16_t *h = m.block;
        if (i == 1)
            for (int k = 0; k < ROWS * COLS; k++) f[k] = f16_to_f32(f32_to_f16(f[k]));
        if (i == 2) h[5 * COLS + 7] = f32_to_bf16(1e5f);
        if (i == 3)
            for (int k = 0; k < COLS; k++) h[3 * COLS + k] = f32_to_bf16(1e-7f * (float)(k + 1));
        check_form(&m, i == 0);
    }
}

enum { MOST_CALLS = 8 };

/* Matrices that share an input give the bits that each gives alone. Frees them. */
static void check_set(struct matrix *m, int n_calls, int n, int cols) {
    float *x = normal((size_t)(n * cols), 5);
    struct buffer *in = buffer_of(x, (size_t)(n * cols)), *out[MOST_CALLS];
    struct weight *w[MOST_CALLS];
    struct linear_call calls[MOST_CALLS];
    for (int i = 0; i < n_calls; i++) {
        w[i] = weight_of(WEIGHT_LINEAR, &m[i].view);
        out[i] = buffer_of(NULL, (size_t)(n * m[i].view.rows));
        calls[i] = (struct linear_call){.dst = out[i], .w = w[i]};
    }
    struct some_batch b;
    batch_of(&b, n, 0);
    backend_begin(be, &b.batch);
    backend_linear(be, calls, n_calls, in);
    for (int i = 0; i < n_calls; i++) {
        size_t size = (size_t)(n * m[i].view.rows);
        float *got = read_all(out[i], size);
        float *alone = multiply(w[i], &m[i], NULL, ACT_NONE, false, x, NULL, n);
        expect(!memcmp(got, alone, size * sizeof *got), "%s: differs in a set", m[i].name);
        free(got);
        free(alone);
        backend_buffer_free(be, out[i]);
        backend_weight_free(be, w[i]);
        matrix_free(&m[i]);
    }
    backend_buffer_free(be, in);
    free(x);
}

/* Several matrices of different forms on one input, as Q, K, V are. */
void check_sets(void) {
    enum { N = 9, COLS = 320, CALLS = 7 };
    const struct bcq_spec r = {BCQ_COMPACT, 100, COLS, 3, 16, 4, 5, 0};
    const struct bcq_spec r2 = {BCQ_COMPACT, 33, COLS, 3, 32, 4, 5, 0};
    const struct bcq_spec h = {BCQ_COMPACT_GROUP, 50, COLS, 2, 16, 4, 5, 9};
    const struct bcq_spec f = {BCQ_FREE, 65, COLS, 2, 64, 0, 0, 0};
    const struct bcq_spec odd = {BCQ_FREE, 20, COLS, 4, 10, 0, 0, 0};
    struct matrix m[CALLS];
    coded(&m[0], &r, false);
    coded(&m[1], &r2, false);
    coded(&m[2], &h, false);
    coded(&m[3], &f, false);
    coded(&m[4], &odd, false);
    dense(&m[5], DTYPE_F16, 40, COLS);
    dense(&m[6], DTYPE_F32, 17, COLS);
    check_set(m, CALLS, N, COLS);
}

/* The outliers' share of a product has x as it is, the codes' has it rounded: off by what fp16 loses. */
static const double beside_near = 3e-4;

static const struct bcq_spec beside_specs[] = {{BCQ_COMPACT, 130, 257, 3, 16, 4, 5, 0},
                                               {BCQ_FREE, 48, 128, 2, 64, 0, 0, 0},
                                               {BCQ_COMPACT, 33, 200, 2, 16, 6, 5, 0}};
enum { N_BESIDE = sizeof beside_specs / sizeof *beside_specs };

static void with_outliers(struct matrix *m, const struct bcq_spec *s, bool whole) {
    coded(m, s, false);
    m->beside = whole ? beside_columns(&m->outliers, s->rows, s->cols, 5)
                      : beside_outliers(&m->outliers, s->rows, s->cols, 5);
    m->view.outliers = &m->outliers;
    snprintf(m->name, sizeof m->name, "%dx%d, kind %d, %s", s->rows, s->cols, (int)s->kind,
             whole ? "columns" : "outliers");
}

/* Of sums of outliers of a size beside codes of a tenth of it; and columns of four bytes. */
void check_outliers(void) {
    const struct bcq_spec wide = {BCQ_COMPACT, 16, 66000, 2, 16, 4, 5, 0};
    struct matrix m;
    for (int turn = 0; turn < 6; turn++) {
        if (is_left_out(turn)) continue;
        with_outliers(&m, &beside_specs[turn % N_BESIDE], turn % 2);
        check_matrix(&m, beside_near,
                     turn == 1 ? 7 : turn); /* 1 and 7: with tiny and huge inputs */
    }
    if (is_small() || is_left_out(6)) return;
    with_outliers(&m, &wide, false);
    check_matrix(&m, beside_near, 0);
}

static void with_rotation(struct matrix *m, const struct bcq_spec *s, bool both, uint64_t seed) {
    coded(m, s, false);
    m->beside = beside_rotation(&m->rotation, s->rows, s->cols, both, seed);
    m->view.rotation = &m->rotation;
    snprintf(m->name, sizeof m->name, "%dx%d, kind %d, %s rotated", s->rows, s->cols, (int)s->kind,
             both ? "both sides" : "inputs");
}

/* Q, K and V: two of them rotated alike, one otherwise, one not at all. */
static void check_rotated_set(void) {
    enum { N = 5, COLS = 192, CALLS = 4 };
    const struct bcq_spec specs[CALLS] = {{BCQ_COMPACT, 96, COLS, 3, 16, 4, 5, 0},
                                          {BCQ_COMPACT, 48, COLS, 3, 16, 4, 5, 0},
                                          {BCQ_COMPACT, 48, COLS, 3, 16, 4, 5, 0},
                                          {BCQ_COMPACT, 40, COLS, 3, 16, 4, 5, 0}};
    struct matrix m[CALLS];
    for (int i = 0; i < 3; i++) with_rotation(&m[i], &specs[i], i % 2 == 0, i == 2 ? 9 : 4);
    coded(&m[3], &specs[3], false);
    check_set(m, CALLS, N, COLS);
}

/* More than any card's block has: 256 KiB. */
static void check_too_long(void) {
    const struct bcq_spec s = {BCQ_COMPACT, 2, ROTATION_MAX, 1, 16, 4, 5, 0};
    struct weight *w = NULL;
    struct matrix m;
    struct error err;
    with_rotation(&m, &s, false, 3);
    expect(backend_weight_new(be, &w, WEIGHT_LINEAR, &m.view, &err) == -ENOTSUP &&
               strstr(err.text, "65536 numbers does not fit"),
           "%s: not refused", m.name);
    matrix_free(&m);
}

void check_rotations(void) {
    static const int sizes[][2] = {{64, 64}, {48, 576}, {96, 172}, {36, 20}, {24, 44}, {128, 2048}};
    struct matrix m;
    for (int turn = 0; turn < 12; turn++) {
        const int *size = sizes[turn / 2];
        struct bcq_spec s = beside_specs[turn % N_BESIDE];
        s.rows = size[0];
        s.cols = size[1];
        if (s.group > s.cols) s.group = s.cols;
        if (is_left_out(turn) || (is_small() && size[1] > 600)) continue;
        with_rotation(&m, &s, turn % 2, 6);
        check_matrix(&m, 2 * beside_near, turn);
    }
    if (!is_left_out(7)) check_rotated_set();
    if (!is_left_out(5)) check_too_long();
}

/* A block whose scales and biases lie elsewhere, and what follows them, too, as where they are unpacked. */
static struct weight *weight_of_sections(const struct bcq_view *v) {
    const struct bcq_layout *l = &v->layout;
    size_t fields = l->shape - l->q, tail = l->total - l->shape, planes = l->q - l->planes;
    struct weight_view view = {.is_bcq = 1, .bcq = *v, .rows = v->spec.rows, .cols = v->spec.cols};
    uint8_t *q = malloc(fields), *block = aligned_alloc(BCQ_ALIGN, planes + tail);
    memcpy(q, v->q, fields);
    memcpy(block, v->planes, planes);
    memcpy(block + planes, v->shape, tail);
    view.bcq.planes = (const uint32_t *)(const void *)block;
    view.bcq.q = q;
    view.bcq.p = q + (l->p - l->q);
    view.bcq.shape = block + planes;
    if (l->shape_table) view.bcq.shape_table = view.bcq.shape + (l->shape_table - l->shape);
    view.bcq.row_scale =
        (const uint16_t *)(const void *)(view.bcq.shape + (l->row_scale - l->shape));
    struct weight *w = weight_of(WEIGHT_LINEAR, &view);
    free(q);
    free(block);
    return w;
}

void check_sections(void) {
    enum { N = 3, ROWS = 50, COLS = 320 };
    const struct bcq_spec specs[] = {{BCQ_COMPACT, ROWS, COLS, 3, 16, 4, 5, 0},
                                     {BCQ_COMPACT_GROUP, ROWS, COLS, 2, 16, 4, 5, 9},
                                     {BCQ_COMPACT, ROWS, COLS, 3, 16, 6, 5, 0}};
    float *x = normal(N * COLS, 5);
    for (int i = 0; i < 3; i++) {
        struct matrix m;
        coded(&m, &specs[i], false);
        struct weight *whole = weight_of(WEIGHT_LINEAR, &m.view);
        struct weight *apart = weight_of_sections(&m.view.bcq);
        float *want = multiply(whole, &m, NULL, ACT_NONE, false, x, NULL, N);
        float *got = multiply(apart, &m, NULL, ACT_NONE, false, x, NULL, N);
        expect(!memcmp(got, want, N * ROWS * sizeof *got), "%s: differs in sections", m.name);
        free(got);
        free(want);
        backend_weight_free(be, whole);
        backend_weight_free(be, apart);
        free(m.block);
    }
    free(x);
}

/* NaN and infinity in a token leave the others alone. */
void check_not_finite(void) {
    enum { N = 7, COLS = 300 };
    const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-42f};
    const struct bcq_spec specs[] = {{BCQ_COMPACT, 40, COLS, 3, 16, 4, 5, 0},
                                     {BCQ_FREE, 40, COLS, 3, 64, 0, 0, 0},
                                     {BCQ_FREE, 40, COLS, 3, 10, 0, 0, 0}};
    for (int s = 0; s < 3; s++) {
        struct matrix m;
        coded(&m, &specs[s], false);
        struct weight *w = weight_of(WEIGHT_LINEAR, &m.view);
        float *x = normal(N * COLS, 5);
        float *good = multiply(w, &m, NULL, ACT_NONE, false, x, NULL, N);
        for (int i = 0; i < 5; i++) {
            x[3 * COLS + 17 * i] = odd[i];
            float *bad = multiply(w, &m, NULL, ACT_NONE, false, x, NULL, N);
            size_t rows = (size_t)m.view.rows;
            expect(!memcmp(bad, good, 3 * rows * sizeof *bad) &&
                       !memcmp(bad + 4 * rows, good + 4 * rows, 3 * rows * sizeof *bad),
                   "%s: changed beside %g", m.name, (double)odd[i]);
            free(bad);
        }
        free(good);
        free(x);
        backend_weight_free(be, w);
        free(m.block);
    }
}
