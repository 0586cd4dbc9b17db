/* Attention of prompts cut in different ways, against sums in fp64. */
#include <errno.h>

#include "tests/kernels/gpu.h"

struct attention_case {
    int dim, kv_heads, n_heads, window, length, chunk;
    bool slopes;
    enum dtype type;
};

/* In which order a batch has the tokens of its two sequences: in turn, or one after the other. */
enum arrangement { IN_TURN, IN_RUNS };

/* The place among all tokens (2 i + s for position i of sequence s) of a batch's token t. */
static size_t place_of(enum arrangement order, int at, int n, int t) {
    if (order == IN_TURN) return (size_t)(2 * at + t);
    return (size_t)(2 * (at + t % (n / 2)) + t / (n / 2));
}

/* Rows of the batch's tokens, gathered from those of all. */
static struct buffer *rows_of(const float *all, size_t width, enum arrangement order, int at,
                              int n) {
    float *rows = malloc((size_t)n * width * sizeof *rows);
    for (int t = 0; t < n; t++)
        memcpy(rows + (size_t)t * width, all + place_of(order, at, n, t) * width,
               width * sizeof *rows);
    struct buffer *b = buffer_of(rows, (size_t)n * width);
    free(rows);
    return b;
}

/* Attention of n tokens from position `at` on. */
static void attend_some(const struct attention_case *a, struct kv *kv, float *out, const float *q,
                        const float *k, const float *v, enum arrangement order, int at, int n) {
    enum { LAYER = 1 };
    size_t q_width = (size_t)(a->n_heads * a->dim), kv_width = (size_t)(a->kv_heads * a->dim);
    float slopes[32];
    for (int i = 0; i < 32; i++) slopes[i] = 0.5f / (float)(i + 1);
    struct some_batch b;
    batch_of(&b, n, at);
    for (int t = 0; t < n; t++) {
        size_t place = place_of(order, at, n, t);
        b.seqs[t] = (int32_t)(place % 2);
        b.positions[t] = (int32_t)(place / 2);
    }
    struct buffer *bq = rows_of(q, q_width, order, at, n), *bk = rows_of(k, kv_width, order, at, n);
    struct buffer *bv = rows_of(v, kv_width, order, at, n);
    struct buffer *dst = buffer_of(NULL, (size_t)n * q_width);
    backend_begin(be, &b.batch);
    backend_kv_store(be, kv, LAYER, bk, bv);
    const struct attention_call call = {dst,
                                        bq,
                                        kv,
                                        LAYER,
                                        a->n_heads,
                                        a->window,
                                        1 / sqrtf((float)a->dim),
                                        a->slopes ? slopes : NULL};
    backend_attention(be, &call);
    float *y = read_all(dst, (size_t)n * q_width);
    for (int t = 0; t < n; t++)
        memcpy(out + place_of(order, at, n, t) * q_width, y + (size_t)t * q_width,
               q_width * sizeof *y);
    free(y);
    backend_buffer_free(be, bq);
    backend_buffer_free(be, bk);
    backend_buffer_free(be, bv);
    backend_buffer_free(be, dst);
}

/* Attention of all tokens of two sequences fed `chunk` positions at a time, those from position `singly`
 * on one at a time. */
static float *attend(const struct attention_case *a, const float *q, const float *k, const float *v,
                     enum arrangement order, int singly) {
    struct kv_spec spec = {2, a->kv_heads, a->dim, 2 * N_BLOCKS, a->type};
    struct kv *kv = NULL;
    struct error err;
    if (backend_kv_new(be, &kv, &spec, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    float *out = malloc((size_t)(2 * a->length * a->n_heads * a->dim) * sizeof *out);
    for (int at = 0, n; at < a->length; at += n) {
        int end = at < singly && singly < a->length ? singly : a->length;
        n = at >= singly ? 1 : end - at < a->chunk ? end - at : a->chunk;
        attend_some(a, kv, out, q, k, v, order, at, 2 * n);
    }
    backend_kv_free(be, kv);
    return out;
}

static float kept(float v, enum dtype type) {
    return type == DTYPE_F32 ? v : f16_to_f32(f32_to_f16(v));
}

/* Token t (position t / 2 of sequence t % 2) in fp64. */
static double attention_error(const struct attention_case *a, const float *q, const float *k,
                              const float *v, const float *got, int t) {
    int dim = a->dim, pos = t / 2, seq = t % 2, per_kv = a->n_heads / a->kv_heads;
    int first = a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0;
    float *want = malloc((size_t)(a->n_heads * dim) * sizeof *want);
    double *p = malloc((size_t)(pos + 1) * sizeof *p);
    for (int h = 0; h < a->n_heads; h++) {
        size_t head = (size_t)(h / per_kv * dim);
        double most = -INFINITY, total = 0;
        for (int i = first; i <= pos; i++) {
            const float *key = k + (size_t)(2 * i + seq) * (size_t)(a->kv_heads * dim) + head;
            double s = 0;
            for (int d = 0; d < dim; d++)
                s += (double)
                         q[((size_t)t * (size_t)a->n_heads + (size_t)h) * (size_t)dim + (size_t)d] *
                     (double)kept(key[d], a->type);
            s *= (double)(1 / sqrtf((float)dim));
            if (a->slopes) s += (double)(0.5f / (float)(h + 1)) * (i - pos);
            p[i] = s;
            if (s > most) most = s;
        }
        for (int i = first; i <= pos; i++) total += p[i] = exp(p[i] - most);
        for (int d = 0; d < dim; d++) {
            double sum = 0;
            for (int i = first; i <= pos; i++)
                sum +=
                    p[i] *
                    (double)kept(
                        v[(size_t)(2 * i + seq) * (size_t)(a->kv_heads * dim) + head + (size_t)d],
                        a->type);
            want[h * dim + d] = (float)(sum / total);
        }
    }
    size_t width = (size_t)(a->n_heads * dim);
    /* Of the size of the values, not of sums that may cancel. */
    double d = 0;
    for (size_t i = 0; i < width; i++)
        d = fmax(d, isnan(got[(size_t)t * width + i])
                        ? INFINITY
                        : fabs((double)got[(size_t)t * width + i] - (double)want[i]));
    free(want);
    free(p);
    return d;
}

/* The engine asks before anything is computed. */
static void check_refusal(void) {
    struct kv *kv = NULL;
    struct error err = {""};
    const struct kv_spec spec = {1, 1, 64, 2, DTYPE_I8};
    int rc = backend_kv_new(be, &kv, &spec, &err);
    expect(rc == -ENOTSUP && strstr(err.text, "int8"), "int8 keys: %d, %s", rc, err.text);
}

void check_attention(void) {
    static const struct attention_case cases[] = {
        {64, 2, 6, 0, 40, 7, false, DTYPE_F16},      {128, 1, 4, 0, 300, 100, false, DTYPE_F16},
        {80, 2, 2, 0, 33, 5, true, DTYPE_F32},       {256, 1, 1, 0, 20, 20, false, DTYPE_F16},
        {7, 1, 11, 0, 50, 9, true, DTYPE_F16},       {16, 1, 2, 30, 600, 111, false, DTYPE_F16},
        {20, 2, 10, 100, 290, 150, true, DTYPE_F32}, {1, 1, 1, 0, 18, 3, false, DTYPE_F32},
        {32, 1, 3, 0, 800, 160, false, DTYPE_F16},   {16, 1, 2, 0, 140, 70, true, DTYPE_F16},
        {64, 1, 1, 0, 135, 130, false, DTYPE_F32},   {64, 2, 16, 0, 140, 70, false, DTYPE_F16},
        {128, 1, 3, 50, 150, 140, true, DTYPE_F16},  {80, 1, 20, 0, 140, 31, false, DTYPE_F16},
        {64, 1, 4, 0, 300, 190, true, DTYPE_F16},
    };
    enum { SMALL = 10000 }; /* values of all heads */
    check_refusal();
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const struct attention_case *a = &cases[c];
        if (is_small() ? a->length * a->n_heads * a->dim > SMALL : is_left_out((int)c)) continue;
        int n = 2 * a->length;
        float *q = normal((size_t)(n * a->n_heads * a->dim), 21);
        float *k = normal((size_t)(n * a->kv_heads * a->dim), 22);
        float *v = normal((size_t)(n * a->kv_heads * a->dim), 23);
        float *got = attend(a, q, k, v, IN_TURN, a->length);
        for (int t = 0; t < n; t += t < 8 || t > n - 8 ? 1 : 13) {
            double d = attention_error(a, q, k, v, got, t);
            expect(d <= 1e-5, "attention case %zu token %d: %g", c, t, d);
        }
        for (int i = 0; i < 3; i++) { /* cut otherwise; the last positions decoded; in runs */
            struct attention_case other = *a;
            if (i == 0) other.chunk = a->chunk > 20 ? a->chunk - 13 : 1;
            float *again = attend(&other, q, k, v, i < 2 ? IN_TURN : IN_RUNS,
                                  i == 1 ? a->length - 3 : a->length);
            expect(!memcmp(got, again, (size_t)(n * a->n_heads * a->dim) * sizeof *got),
                   "attention case %zu depends on %s", c,
                   i < 2 ? "how the prompt is cut" : "the order of tokens");
            free(again);
        }
        free(got);
        free(q);
        free(k);
        free(v);
    }
}
