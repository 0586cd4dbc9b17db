#include "engine/quant/examine.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "engine/model.h"
#include "engine/source.h"
#include "kernels/error.h"

enum { CHUNK = 1 << 18 /* elements widened at a time, about: they stay in the cache */ };

/* Infinity and NaN, times zero, are NaN, and stay so in a sum: one branch for many values. */
static bool all_finite(const float *x, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) sum += x[i] * 0.0f;
    return sum == 0.0f;
}

static int name_value(const struct source_tensor *t, int64_t row, const float *x, size_t n,
                      struct error *err) {
    size_t i = 0;
    while (i < n && isfinite(x[i])) i++;
    return error_set(err, -EDOM, "tensor '%s': row %lld, column %lld is not finite", t->name,
                     (long long)(row + (int64_t)i / t->cols), (long long)((int64_t)i % t->cols));
}

static int examine_tensor(const struct source *src, const struct source_tensor *t,
                          struct error *err) {
    int64_t step = t->cols < CHUNK ? CHUNK / t->cols : 1;
    if (step > t->rows) step = t->rows;
    size_t cols = (size_t)t->cols;
    float *x = malloc((size_t)step * cols * sizeof *x);
    if (!x) return error_set(err, -ENOMEM, "tensor '%s': out of memory", t->name);
    int r = 0;
    for (int64_t row = 0; r == 0 && row < t->rows; row += step) {
        int64_t n = t->rows - row < step ? t->rows - row : step;
        r = source_read_rows(src, t, row, n, x, err);
        if (r == 0 && !all_finite(x, (size_t)n * cols))
            r = name_value(t, row, x, (size_t)n * cols, err);
    }
    free(x);
    source_release(src, t);
    return r;
}

int examine_values(const struct source *src, struct error *err) {
    int r = 0;
    for (size_t i = 0; r == 0 && i < source_count(src); i++) {
        const struct source_tensor *t = source_at(src, i);
        /* Integers and coded matrices are others' business; an empty tensor has no values. */
        if (t->kind <= SOURCE_GGUF && t->rows > 0 && t->cols > 0) r = examine_tensor(src, t, err);
    }
    return r;
}

int examine_layers(struct model *m, int n_layers, struct error *err) {
    for (int layer = 0; layer < n_layers; layer++) {
        int r = model_load_layer(m, layer, err);
        if (r < 0) return r;
        model_drop_layer(m, layer);
    }
    return 0;
}
