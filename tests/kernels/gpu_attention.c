/* Attention of prompts cut in different ways, against sums in fp64. */
#include <errno.h>

#include "tests/kernels/gpu.h"

struct attention_case {
    int dim, kv_heads, n_heads, window, length, chunk;
    bool slopes;
    enum dtype type;
};

/* Attention of all tokens of two sequences fed `chunk` positions at a time. */
static float *attend(const struct attention_case *a, const float *q, const float *k,
                     const float *v) {
    int dim = a->dim, n_layers = 2, layer = 1;
    size_t q_width = (size_t)(a->n_heads * dim), kv_width = (size_t)(a->kv_heads * dim);
    struct kv_spec spec = {n_layers, a->kv_heads, dim, 2 * N_BLOCKS, a->type};
    struct kv *kv = NULL;
    struct error err;
    if (backend_kv_new(be, &kv, &spec, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    float slopes[32];
    for (int i = 0; i < 32; i++) slopes[i] = 0.5f / (float)(i + 1);
    float *out = malloc((size_t)(2 * a->length) * q_width * sizeof *out);
    for (int at = 0; at < a->length; at += a->chunk) {
        int n = (a->length - at < a->chunk ? a->length - at : a->chunk) * 2;
        struct some_batch b;
        batch_of(&b, n, at);
        size_t from = (size_t)(2 * at);
        struct buffer *bq = buffer_of(q + from * q_width, (size_t)n * q_width);
        struct buffer *bk = buffer_of(k + from * kv_width, (size_t)n * kv_width);
        struct buffer *bv = buffer_of(v + from * kv_width, (size_t)n * kv_width);
        struct buffer *dst = buffer_of(NULL, (size_t)n * q_width);
        backend_begin(be, &b.batch);
        backend_kv_store(be, kv, layer, bk, bv);
        struct attention_call call = {dst,
                                      bq,
                                      kv,
                                      layer,
                                      a->n_heads,
                                      a->window,
                                      1 / sqrtf((float)dim),
                                      a->slopes ? slopes : NULL};
        backend_attention(be, &call);
        float *y = read_all(dst, (size_t)n * q_width);
        memcpy(out + from * q_width, y, (size_t)n * q_width * sizeof *y);
        free(y);
        backend_buffer_free(be, bq);
        backend_buffer_free(be, bk);
        backend_buffer_free(be, bv);
        backend_buffer_free(be, dst);
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
        {64, 1, 1, 0, 135, 130, false, DTYPE_F32},
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
        float *got = attend(a, q, k, v);
        for (int t = 0; t < n; t += t < 8 || t > n - 8 ? 1 : 13) {
            double d = attention_error(a, q, k, v, got, t);
            expect(d <= 1e-5, "attention case %zu token %d: %g", c, t, d);
        }
        struct attention_case other = *a;
        other.chunk = a->chunk > 20 ? a->chunk - 13 : 1;
        float *again = attend(&other, q, k, v);
        expect(!memcmp(got, again, (size_t)(n * a->n_heads * a->dim) * sizeof *got),
               "attention case %zu depends on how the prompt is cut", c);
        free(again);
        free(got);
        free(q);
        free(k);
        free(v);
    }
}
