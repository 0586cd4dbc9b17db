#include "engine/quant/norm_fit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

struct sums {
    double x, y, xx, xy, yy;
};

struct norm_fit {
    int width;
    double n;
    struct sums sums[]; /* (width) */
};

int norm_fit_new(struct norm_fit **ret, int width, struct error *err) {
    struct norm_fit *f = calloc(1, sizeof *f + (size_t)width * sizeof *f->sums);
    if (!f) return error_set(err, -ENOMEM, "norm fit: out of memory");
    f->width = width;
    *ret = f;
    return 0;
}

void norm_fit_free(struct norm_fit *f) { free(f); }

void norm_fit_reset(struct norm_fit *f) {
    f->n = 0.0;
    memset(f->sums, 0, (size_t)f->width * sizeof *f->sums);
}

void norm_fit_add(struct norm_fit *f, const float *now, const float *wanted, int n_rows) {
    f->n += n_rows;
    for (int r = 0; r < n_rows; r++) {
        for (int c = 0; c < f->width; c++) {
            size_t at = (size_t)r * (size_t)f->width + (size_t)c;
            double x = (double)now[at], y = (double)wanted[at];
            struct sums *s = &f->sums[c];
            s->x += x;
            s->y += y;
            s->xx += x * x;
            s->xy += x * y;
            s->yy += y * y;
        }
    }
}

static double factor_of(const struct sums *s, double n, enum norm_fit_form form, bool has_bias) {
    double xx = s->xx, xy = s->xy, yy = s->yy;
    if (has_bias) {
        xx -= s->x * s->x / n;
        xy -= s->x * s->y / n;
        yy -= s->y * s->y / n;
    }
    if (!(xx > 1e-12 * s->xx) || !(yy > 0.0)) return 1.0;
    double factor = form == NORM_FIT_MOMENTS ? sqrt(yy / xx) : xy / xx;
    return fmin(fmax(factor, 0.5), 2.0);
}

void norm_fit_solve(const struct norm_fit *f, enum norm_fit_form form, bool has_bias, float *factor,
                    float *offset) {
    for (int c = 0; c < f->width; c++) {
        const struct sums *s = &f->sums[c];
        double a = f->n > 0.0 ? factor_of(s, f->n, form, has_bias) : 1.0;
        factor[c] = (float)a;
        offset[c] = has_bias && f->n > 0.0 ? (float)((s->y - a * s->x) / f->n) : 0.0f;
    }
}
