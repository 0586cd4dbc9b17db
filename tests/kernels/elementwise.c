#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/float16.h"
#include "tests/kernels/check.h"
#include "tests/support/random.h"

typedef void norm_fn(float *dst, const float *src, const float *w, const float *b, int dim,
                     const struct ops *ops);

static void rms(float *dst, const float *src, const float *w, const float *b, int dim,
                const struct ops *ops) {
    (void)b;
    ops->rmsnorm(dst, src, w, dim, 1e-5f);
}

static void layer(float *dst, const float *src, const float *w, const float *b, int dim,
                  const struct ops *ops) {
    ops->layernorm(dst, src, w, b, dim, 1e-5f);
}

static double distance(const float *got, const float *want, size_t n) {
    double d = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        all += (double)want[i] * (double)want[i];
    }
    return all > 0 ? sqrt(d / all) : sqrt(d);
}

static void check_norm_of(struct check *c, norm_fn *norm, int dim, enum check_input input) {
    size_t n = (size_t)dim;
    struct fence x = check_floats(n, input, 1), w = check_floats(n, INPUT_NORMAL, 2);
    struct fence b = check_floats(n, INPUT_NORMAL, 3), in_place = check_floats(n, input, 1);
    struct fence got = fence_new(n * sizeof(float), 4), want = fence_new(n * sizeof(float), 4);
    norm(got.p, x.p, w.p, b.p, dim, c->ops);
    norm(want.p, x.p, w.p, b.p, dim, c->ref);
    norm(in_place.p, in_place.p, w.p, b.p, dim, c->ops);
    if (input != INPUT_NOT_FINITE)
        check_expect(c, distance(got.p, want.p, n) <= 1e-5, "dim %d input %d: off by %g", dim,
                     (int)input, distance(got.p, want.p, n));
    check_expect(c, check_same(got.p, in_place.p, n), "dim %d: differs in place", dim);
    check_expect(c, fence_intact(&got) && fence_intact(&in_place), "dim %d: wrote outside", dim);
    struct fence *all[] = {&x, &w, &b, &in_place, &got, &want};
    for (int i = 0; i < 6; i++) fence_free(all[i]);
}

void check_norm(struct check *c) {
    for (int i = 0; i < CHECK_N_SIZES; i++) {
        for (int input = 0; input < CHECK_N_INPUTS; input++) {
            check_norm_of(c, rms, check_sizes[i], (enum check_input)input);
            check_norm_of(c, layer, check_sizes[i], (enum check_input)input);
        }
    }
}

static void check_rope_of(struct check *c, int n_heads, int head_dim, int half) {
    size_t n = (size_t)n_heads * (size_t)head_dim;
    struct fence got = check_floats(n, INPUT_NORMAL, 1), want = check_floats(n, INPUT_NORMAL, 1);
    struct fence co = check_floats((size_t)half, INPUT_NORMAL, 2);
    struct fence si = check_floats((size_t)half, INPUT_NORMAL, 3);
    c->ops->rope(got.p, n_heads, head_dim, half, co.p, si.p);
    c->ref->rope(want.p, n_heads, head_dim, half, co.p, si.p);
    check_expect(c, distance(got.p, want.p, n) <= 1e-6, "dim %d half %d: off by %g", head_dim, half,
                 distance(got.p, want.p, n));
    for (int h = 0; h < n_heads; h++)
        check_expect(c,
                     check_same((float *)got.p + h * head_dim + 2 * half,
                                (float *)want.p + h * head_dim + 2 * half,
                                (size_t)(head_dim - 2 * half)),
                     "dim %d half %d: the rest moved", head_dim, half);
    check_expect(c, fence_intact(&got), "dim %d: wrote outside", head_dim);
    struct fence *all[] = {&got, &want, &co, &si};
    for (int i = 0; i < 4; i++) fence_free(all[i]);
}

void check_rope(struct check *c) {
    for (int i = 1; i < CHECK_N_SIZES - 2; i++)
        for (int half = 1; 2 * half <= check_sizes[i]; half += 1 + half / 3)
            check_rope_of(c, 1 + i % 4, check_sizes[i], half);
}

/* Far below zero GELU is x e^(2u), which multiplies the rounding of u by u; values there are
 * small. */
static bool near_relative(float got, float want) {
    if (isnan(want) || isinf(want)) return true;
    double d = fabs((double)got - (double)want);
    return d <= 1e-6 * fabs((double)want) + 1e-11;
}

enum { SILU, GELU, RELU, ADD, N_PAIR_OPS };
static const char *const pair_names[] = {"silu_mul", "gelu_tanh", "relu", "add"};

static void pair(const struct ops *ops, int op, float *x, const float *y, size_t n) {
    if (op == SILU) ops->silu_mul(x, y, n);
    if (op == GELU) ops->gelu_tanh(x, n);
    if (op == RELU) ops->relu(x, n);
    if (op == ADD) ops->add(x, y, n);
}

static void check_pair(struct check *c, int op, size_t n, enum check_input input, float scale) {
    struct fence got = check_floats(n, input, 1), want = check_floats(n, input, 1);
    struct fence y = check_floats(n, INPUT_NORMAL, 2);
    for (size_t i = 0; i < n; i++) ((float *)want.p)[i] = ((float *)got.p)[i] *= scale;
    struct fence parts = check_floats(n, input, 1);
    memcpy(parts.p, got.p, n * sizeof(float));
    pair(c->ops, op, got.p, y.p, n);
    pair(c->ref, op, want.p, y.p, n);
    for (size_t i = 0; i < n; i++)
        check_expect(c, near_relative(((float *)got.p)[i], ((float *)want.p)[i]),
                     "%s of %zu: %g, not %g", pair_names[op], n, (double)((float *)got.p)[i],
                     (double)((float *)want.p)[i]);
    size_t cut = n / 3 + 1 < n ? n / 3 + 1 : n;
    pair(c->ops, op, parts.p, y.p, cut);
    if (cut < n) pair(c->ops, op, (float *)parts.p + cut, (float *)y.p + cut, n - cut);
    check_expect(c, check_same(got.p, parts.p, n) || input == INPUT_NOT_FINITE,
                 "%s of %zu: differs in parts", pair_names[op], n);
    check_expect(c, fence_intact(&got) && fence_intact(&parts), "%s of %zu: wrote outside",
                 pair_names[op], n);
    struct fence *all[] = {&got, &want, &y, &parts};
    for (int i = 0; i < 4; i++) fence_free(all[i]);
}

static void check_pairs(struct check *c, int first, int last) {
    for (int op = first; op <= last; op++) {
        for (int i = 0; i < CHECK_N_SIZES; i++)
            for (int input = 0; input < CHECK_N_INPUTS; input++)
                check_pair(c, op, (size_t)check_sizes[i], (enum check_input)input, 1);
        for (float scale = 1e-3f; scale < 60; scale *= 3)
            check_pair(c, op, 5000, INPUT_NORMAL, scale);
    }
}

void check_activation(struct check *c) { check_pairs(c, SILU, RELU); }

void check_add(struct check *c) { check_pairs(c, ADD, ADD); }

/* Exact for every 16-bit pattern. */
void check_widen(struct check *c) {
    enum { N = 65536 };
    static uint16_t half[N];
    static float got[N + 16], want[N];
    for (int i = 0; i < N; i++) half[i] = (uint16_t)i;
    for (int t = 0; t < 2; t++) {
        enum dtype type = t ? DTYPE_BF16 : DTYPE_F16;
        c->ops->widen(got, type, half, N);
        for (int i = 0; i < N; i++) {
            want[i] = t ? bf16_to_f32(half[i]) : f16_to_f32(half[i]);
            check_expect(c, isnan(want[i]) ? isnan(got[i]) != 0 : check_same(got + i, want + i, 1),
                         "type %d: %#x becomes %g, not %g", (int)type, (unsigned)i, (double)got[i],
                         (double)want[i]);
        }
    }
    for (size_t n = 0; n < 40; n++) {
        struct fence src = check_floats(n + 1, INPUT_NORMAL, 1);
        struct fence dst = fence_new(n * sizeof(float), sizeof(float));
        for (int t = 0; t < 3; t++) {
            size_t size = dtype_size((enum dtype)t);
            c->ops->widen(dst.p, (enum dtype)t, (char *)src.p + (n + 1) * 4 - n * size, n);
            check_expect(c, fence_intact(&dst), "%zu of type %d: wrote outside", n, t);
        }
        fence_free(&src);
        fence_free(&dst);
    }
}
