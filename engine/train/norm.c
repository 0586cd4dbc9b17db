#include "engine/train/norm.h"

#include <math.h>

#include "engine/quant/parallel.h"

/* Rows of a piece where rows are independent, columns where they are. */
enum { ROWS = 32, COLS = 64 };

struct work {
    const struct norm_rows *norm;
    const float *x, *dy, *base;
    float *y, *dw, *db, *stats;
};

static void moments(const struct norm_rows *norm, const float *x, double *ret_mean,
                    double *ret_scale) {
    double mean = 0.0, squares = 0.0;
    if (norm->b) {
        for (int i = 0; i < norm->dim; i++) mean += (double)x[i];
        mean /= norm->dim;
    }
    for (int i = 0; i < norm->dim; i++) {
        double d = (double)x[i] - mean;
        squares += d * d;
    }
    *ret_mean = mean;
    *ret_scale = 1.0 / sqrt(squares / norm->dim + (double)norm->eps);
}

static int rows_of(const struct norm_rows *norm, size_t piece) {
    int rest = norm->n - (int)piece * ROWS;
    return rest < ROWS ? rest : ROWS;
}

static void forward_rows(void *arg, size_t piece) {
    const struct work *k = arg;
    const struct norm_rows *norm = k->norm;
    size_t dim = (size_t)norm->dim, first = piece * ROWS;
    for (int r = 0; r < rows_of(norm, piece); r++) {
        const float *x = k->x + (first + (size_t)r) * dim;
        float *y = k->y + (first + (size_t)r) * dim;
        double mean, scale;
        moments(norm, x, &mean, &scale);
        for (size_t i = 0; i < dim; i++) {
            double v = ((double)x[i] - mean) * scale * (double)norm->w[i];
            y[i] = (float)(norm->b ? v + (double)norm->b[i] : v);
        }
    }
}

void norm_forward(const struct norm_rows *norm, const float *x, float *y) {
    struct work k = {.norm = norm, .x = x, .y = y};
    parallel_for(norm->n_threads, ((size_t)norm->n + ROWS - 1) / ROWS, forward_rows, &k);
}

static void keep_stats(void *arg, size_t piece) {
    const struct work *k = arg;
    size_t first = piece * ROWS;
    for (int r = 0; r < rows_of(k->norm, piece); r++) {
        double mean, scale;
        moments(k->norm, k->x + (first + (size_t)r) * (size_t)k->norm->dim, &mean, &scale);
        k->stats[2 * (first + (size_t)r)] = (float)mean;
        k->stats[2 * (first + (size_t)r) + 1] = (float)scale;
    }
}

static void backward_rows(void *arg, size_t piece) {
    const struct work *k = arg;
    const struct norm_rows *norm = k->norm;
    size_t dim = (size_t)norm->dim, first = piece * ROWS;
    for (int r = 0; r < rows_of(norm, piece); r++) {
        size_t at = (first + (size_t)r) * dim;
        const float *x = k->x + at, *dy = k->dy + at;
        double mean = (double)k->stats[2 * (first + (size_t)r)];
        double scale = (double)k->stats[2 * (first + (size_t)r) + 1], plain = 0.0, along = 0.0;
        for (size_t i = 0; i < dim; i++) {
            double g = (double)dy[i] * (double)norm->w[i];
            plain += g;
            along += g * ((double)x[i] - mean) * scale;
        }
        plain = norm->b ? plain / norm->dim : 0.0;
        along /= norm->dim;
        for (size_t i = 0; i < dim; i++) {
            double g = (double)dy[i] * (double)norm->w[i], xhat = ((double)x[i] - mean) * scale;
            double d = scale * (g - plain - xhat * along);
            k->y[at + i] = (float)(k->base ? (double)k->base[at + i] + d : d);
        }
    }
}

static void sum_columns(void *arg, size_t piece) {
    const struct work *k = arg;
    size_t dim = (size_t)k->norm->dim, first = piece * COLS;
    size_t n = dim - first < COLS ? dim - first : COLS;
    double w[COLS] = {0}, b[COLS] = {0};
    for (size_t r = 0; r < (size_t)k->norm->n; r++) {
        const float *x = k->x + r * dim + first, *dy = k->dy + r * dim + first;
        float mean = k->stats[2 * r], scale = k->stats[2 * r + 1];
        for (size_t i = 0; i < n; i++) {
            w[i] += (double)dy[i] * (double)((x[i] - mean) * scale);
            b[i] += (double)dy[i];
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (k->dw) k->dw[first + i] += (float)w[i];
        if (k->db) k->db[first + i] += (float)b[i];
    }
}

void norm_backward(const struct norm_rows *norm, const float *x, const float *dy, const float *base,
                   float *dx, float *dw, float *db, float *stats) {
    struct work k = {
        .norm = norm, .x = x, .dy = dy, .base = base, .y = dx, .dw = dw, .db = db, .stats = stats};
    size_t pieces = ((size_t)norm->n + ROWS - 1) / ROWS;
    parallel_for(norm->n_threads, pieces, keep_stats, &k);
    /* Before dx is written, which may be where dy is. */
    if (dw || db)
        parallel_for(norm->n_threads, ((size_t)norm->dim + COLS - 1) / COLS, sum_columns, &k);
    parallel_for(norm->n_threads, pieces, backward_rows, &k);
}
