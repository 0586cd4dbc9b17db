#include "engine/quant/fit.h"

#include <math.h>

#include "engine/quant/pack.h"
#include "kernels/float16.h"

/* Codes tried on either side; wider windows found nothing more on real layers. */
enum { WINDOW = 1, MAX_LEVELS = 1 << BCQ_MAX_BITS };

/* A group's levels in units of its scale, around its bias, rising. */
struct shape {
    int n_levels;
    float level[MAX_LEVELS];
};

static void make_shape(struct shape *s, const int *d, int bits) {
    s->n_levels = 1 << bits;
    for (int code = 0; code < s->n_levels; code++) {
        float level = 0.0f;
        int at = code;
        for (int i = 0; i < bits; i++) level += (code >> i & 1 ? 0.5f : -0.5f) * (float)d[i];
        for (; at > 0 && s->level[at - 1] > level; at--) s->level[at] = s->level[at - 1];
        s->level[at] = level;
    }
}

static float cost_of(const struct shape *s, const float *w, const float *h, int n, float scale,
                     float bias) {
    float inverse = 1.0f / scale, sum = 0.0f;
    for (int k = 0; k < n; k++) {
        float x = (w[k] - bias) * inverse, nearest = s->level[0];
        for (int l = 1; l < s->n_levels; l++)
            nearest = x > 0.5f * (s->level[l - 1] + s->level[l]) ? s->level[l] : nearest;
        sum += h[k] * (x - nearest) * (x - nearest);
    }
    return sum * scale * scale;
}

struct supers {
    float scale, bias; /* per unit of the codes */
    int q_max, p_max;
};

static void fit_group(const struct bcq_view *v, int row, int group, const float *w, const float *h,
                      int n, const struct supers *u) {
    struct shape shape;
    int d[BCQ_MAX_BITS], q, p, best_q, best_p;
    float least = INFINITY;
    bcq_group_codes(v, row, group, d, &q, &p);
    if (q == 0) return; /* one level: nothing to choose */
    make_shape(&shape, d, v->spec.bits);
    best_q = q;
    best_p = p;
    for (int i = q - WINDOW; i <= q + WINDOW; i++) {
        if (i < 1 || i > u->q_max) continue;
        for (int j = p - WINDOW; j <= p + WINDOW; j++) {
            if (j < -u->p_max || j > u->p_max) continue;
            float cost = cost_of(&shape, w, h, n, u->scale * (float)i, u->bias * (float)j);
            if (!(cost < least)) continue;
            least = cost;
            best_q = i;
            best_p = j;
        }
    }
    pack_compact(v, row, group, (unsigned)best_q, best_p);
}

void fit_row(const struct bcq_view *v, int row, const float *w, const float *h) {
    const uint16_t *super = v->row_scale + 2 * (size_t)row;
    struct supers u = {.scale = f16_to_f32(super[0]),
                       .bias = f16_to_f32(super[1]),
                       .q_max = (1 << v->spec.scale_bits) - 1,
                       .p_max = (1 << (v->spec.bias_bits - 1)) - 1};
    if (!(u.scale > 0.0f)) return;
    for (int g = 0; g < v->layout.n_groups; g++) {
        int first = g * v->spec.group, rest = v->spec.cols - first;
        fit_group(v, row, g, w + first, h + first, rest < v->spec.group ? rest : v->spec.group, &u);
    }
}
