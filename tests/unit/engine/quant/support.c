#include "tests/unit/engine/quant/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool open_in(struct golden *g, const char *root, const char *middle, const char *name) {
    char path[600];
    if (!root) return false;
    snprintf(g->folder, sizeof g->folder, "%s%s/quant/%s", root, middle, name);
    snprintf(path, sizeof path, "%s/inputs.safetensors", g->folder);
    return safetensors_open(&g->inputs, path, NULL) == 0;
}

bool support_golden_open(struct golden *g, const char *name) {
    memset(g, 0, sizeof *g);
    if (!open_in(g, getenv("GPTQT_FIXTURES"), "", name) &&
        !open_in(g, getenv("GPTQT_SHARED"), "/fixtures", name))
        return false;
    const struct safetensors_tensor *w = safetensors_find(&g->inputs, "W");
    cr_assert(w && w->n_dims == 2);
    g->rows = (int)w->shape[0];
    g->cols = (int)w->shape[1];
    g->w = w->data;
    g->h = malloc((size_t)g->cols * (size_t)g->cols * sizeof *g->h);
    cr_assert(g->h);
    support_golden_reset(g);
    return true;
}

void support_golden_reset(struct golden *g) {
    size_t n_bytes = (size_t)g->cols * (size_t)g->cols * sizeof *g->h;
    memcpy(g->h, support_tensor(&g->inputs, "H", n_bytes), n_bytes);
}

void support_golden_close(struct golden *g) {
    safetensors_close(&g->inputs);
    free(g->h);
}

const void *support_tensor(const struct safetensors *st, const char *name, size_t n_bytes) {
    const struct safetensors_tensor *t = safetensors_find(st, name);
    cr_assert(t, "no tensor %s", name);
    cr_assert_eq(t->n_bytes, n_bytes, "tensor %s", name);
    return t->data;
}

double support_loss(const float *w, const double *q, const double *h, int rows, int cols) {
    double sum = 0.0;
    size_t n = (size_t)cols;
    double *d = malloc(n * sizeof *d);
    cr_assert(d);
    for (size_t r = 0; r < (size_t)rows; r++) {
        for (size_t j = 0; j < n; j++) d[j] = (double)w[r * n + j] - q[r * n + j];
        for (size_t i = 0; i < n; i++) {
            double s = 0.0;
            for (size_t j = 0; j < n; j++) s += h[i * n + j] * d[j];
            sum += s * d[i];
        }
    }
    free(d);
    return sum;
}

double support_uniform(uint64_t *state) {
    /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

double support_normal(uint64_t *state) {
    double sum = -6.0;
    for (int i = 0; i < 12; i++) sum += support_uniform(state);
    return sum;
}

/* One sample: a few common factors, noise, some channels much louder than the rest. */
static void sample(uint64_t *state, const double *mix, int n_factors, int cols, double *x) {
    for (int j = 0; j < cols; j++) x[j] = 0.3 * support_normal(state);
    for (int f = 0; f < n_factors; f++) {
        double z = support_normal(state);
        for (int j = 0; j < cols; j++) x[j] += z * mix[f * cols + j];
    }
}

void support_problem(uint64_t seed, int rows, int cols, float *w, double *h) {
    uint64_t state = seed;
    int n_factors = cols / 8 + 1, n_samples = 4 * cols;
    size_t n = (size_t)cols;
    double *mix = malloc((size_t)n_factors * n * sizeof *mix), *x = malloc(n * sizeof *x);
    cr_assert(mix && x);
    for (int j = 0; j < cols; j++) {
        double loud = exp(0.7 * support_normal(&state)) * (j % 64 == 5 ? 20.0 : 1.0);
        for (int f = 0; f < n_factors; f++)
            mix[f * cols + j] = loud * support_normal(&state) / sqrt(n_factors);
    }
    memset(h, 0, n * n * sizeof *h);
    for (int s = 0; s < n_samples; s++) {
        sample(&state, mix, n_factors, cols, x);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) h[i * n + j] += x[i] * x[j] / n_samples;
    }
    for (size_t i = 0; i < (size_t)rows * n; i++) {
        double z = support_normal(&state);
        w[i] = (float)(0.03 * z * (1.0 + 0.3 * fabs(z)));
    }
    free(mix);
    free(x);
}
