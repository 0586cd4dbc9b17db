#include "engine/train/activation.h"

#include <string.h>

#include "engine/quant/parallel.h"
#include "engine/train/wide.h"

enum { PIECE = 1 << 14 };

struct work {
    enum activation act;
    const float *x, *up, *dy;
    float *y, *dup;
    size_t n;
};

static size_t piece_size(const struct work *k, size_t piece) {
    size_t rest = k->n - piece * PIECE;
    return rest < PIECE ? rest : PIECE;
}

static void run(struct work *k, parallel_piece *piece, int n_threads) {
    parallel_for(n_threads, (k->n + PIECE - 1) / PIECE, piece, k);
}

static inline __attribute__((always_inline)) float sigmoid(float x) {
    return 1.0f / (1.0f + wide_exp(-x));
}

WIDE_VERSIONS static void gate_loop(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

WIDE_VERSIONS static void gate_back_loop(const float *gate, const float *up, const float *dy,
                                         float *dgate, float *dup, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float g = gate[i], u = up[i], d = dy[i], s = sigmoid(g);
        dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
        dup[i] = d * g * s;
    }
}

WIDE_VERSIONS static void relu_loop(const float *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = x[i] < 0.0f ? 0.0f : x[i];
}

WIDE_VERSIONS static void relu_back_loop(const float *x, const float *dy, float *dx, size_t n) {
    for (size_t i = 0; i < n; i++) dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;
}

/* 0.5 (1 + tanh(u)) = sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3). */
static const float gelu_scale = 2.0f * 0.79788456080286535588f, gelu_cube = 0.044715f;

WIDE_VERSIONS static void gelu_loop(const float *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float v = x[i];
        y[i] = v * sigmoid(gelu_scale * (v + gelu_cube * v * v * v));
    }
}

WIDE_VERSIONS static void gelu_back_loop(const float *x, const float *dy, float *dx, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float v = x[i], s = sigmoid(gelu_scale * (v + gelu_cube * v * v * v));
        float inner = gelu_scale * (1.0f + 3.0f * gelu_cube * v * v);
        dx[i] = dy[i] * s * (1.0f + v * (1.0f - s) * inner);
    }
}

static void gate_piece(void *arg, size_t piece) {
    const struct work *k = arg;
    size_t at = piece * PIECE;
    gate_loop(k->x + at, k->up + at, k->y + at, piece_size(k, piece));
}

void activation_gate(const float *gate, const float *up, float *y, size_t n, int n_threads) {
    struct work k = {.x = gate, .up = up, .y = y, .n = n};
    run(&k, gate_piece, n_threads);
}

static void gate_back_piece(void *arg, size_t piece) {
    const struct work *k = arg;
    size_t at = piece * PIECE;
    gate_back_loop(k->x + at, k->up + at, k->dy + at, k->y + at, k->dup + at, piece_size(k, piece));
}

void activation_gate_backward(const float *gate, const float *up, const float *dy, float *dgate,
                              float *dup, size_t n, int n_threads) {
    struct work k = {.x = gate, .up = up, .dy = dy, .y = dgate, .dup = dup, .n = n};
    run(&k, gate_back_piece, n_threads);
}

static void plain_piece(void *arg, size_t piece) {
    const struct work *k = arg;
    size_t at = piece * PIECE, n = piece_size(k, piece);
    if (k->act == ACT_RELU)
        relu_loop(k->x + at, k->y + at, n);
    else if (k->act == ACT_GELU_TANH)
        gelu_loop(k->x + at, k->y + at, n);
    else
        memmove(k->y + at, k->x + at, n * sizeof *k->y);
}

void activation_plain(enum activation act, const float *x, float *y, size_t n, int n_threads) {
    struct work k = {.act = act, .x = x, .y = y, .n = n};
    run(&k, plain_piece, n_threads);
}

static void plain_back_piece(void *arg, size_t piece) {
    const struct work *k = arg;
    size_t at = piece * PIECE, n = piece_size(k, piece);
    if (k->act == ACT_RELU)
        relu_back_loop(k->x + at, k->dy + at, k->y + at, n);
    else if (k->act == ACT_GELU_TANH)
        gelu_back_loop(k->x + at, k->dy + at, k->y + at, n);
    else
        memmove(k->y + at, k->dy + at, n * sizeof *k->y);
}

void activation_plain_backward(enum activation act, const float *x, const float *dy, float *dx,
                               size_t n, int n_threads) {
    struct work k = {.act = act, .x = x, .dy = dy, .y = dx, .n = n};
    run(&k, plain_back_piece, n_threads);
}
