#include "engine/quant/rescale.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/descend.h"
#include "engine/quant/linalg.h"
#include "engine/quant/strip.h"
#include "kernels/error.h"
#include "kernels/float16.h"

enum { BLOCK = 32 /* rows of H whose products are held at a time */ };

/* What a unit of either super-scale adds to each column, and the quadratic of every lane. */
struct rescale {
    float *a, *b; /* (n, GPTQ_LANES) */
    double aa[GPTQ_LANES], ab[GPTQ_LANES], bb[GPTQ_LANES], ad[GPTQ_LANES], bd[GPTQ_LANES];
};

static void make_units(struct rescale *z, const struct strip *s) {
    const struct bcq_view *v = &s->p->view;
    memset(z->a, 0, (size_t)s->n * GPTQ_LANES * sizeof *z->a);
    memset(z->b, 0, (size_t)s->n * GPTQ_LANES * sizeof *z->b);
    for (int i = 0; i < s->n_rows; i++) {
        for (int j = 0; j < s->n; j++) {
            int d[BCQ_MAX_BITS], q, p, sum = 0;
            size_t at = (size_t)s->p->factor->place[j] * GPTQ_LANES + (size_t)i;
            bcq_group_codes(v, s->row + i, j / v->spec.group, d, &q, &p);
            for (int t = 0; t < v->spec.bits; t++) sum += s->code[at] >> t & 1 ? d[t] : -d[t];
            z->a[at] = 0.5f * (float)(q * sum);
            z->b[at] = (float)p;
        }
    }
}

static void add_products(double *sum, const float *x, const float *y, int width) {
    for (int k = 0; k < width; k++)
        for (int i = 0; i < GPTQ_LANES; i++)
            sum[i] += (double)x[k * GPTQ_LANES + i] * (double)y[k * GPTQ_LANES + i];
}

static void make_quadratic(struct rescale *z, const struct strip *s) {
    float ha[BLOCK * GPTQ_LANES], hb[BLOCK * GPTQ_LANES];
    for (int first = 0; first < s->n; first += BLOCK) {
        int width = s->n - first < BLOCK ? s->n - first : BLOCK;
        const float *h = s->p->h + (size_t)first * (size_t)s->n;
        size_t at = (size_t)first * GPTQ_LANES;
        struct linalg_shape shape = {width, GPTQ_LANES, s->n, s->n, GPTQ_LANES, GPTQ_LANES};
        linalg_gemm_f32(ha, h, z->a, &shape, 1.0f, 0.0f);
        linalg_gemm_f32(hb, h, z->b, &shape, 1.0f, 0.0f);
        add_products(z->aa, z->a + at, ha, width);
        add_products(z->ab, z->b + at, ha, width);
        add_products(z->bb, z->b + at, hb, width);
        add_products(z->ad, s->d + at, ha, width);
        add_products(z->bd, s->d + at, hb, width);
    }
}

/* The loss changes by this when the super-scales move by x and y. */
static double change(const struct rescale *z, int i, double x, double y) {
    return 2.0 * (z->ad[i] * x + z->bd[i] * y) + z->aa[i] * x * x + 2.0 * z->ab[i] * x * y +
           z->bb[i] * y * y;
}

static void rescale_row(const struct rescale *z, const struct strip *s, int i) {
    uint16_t *super = (uint16_t *)(uintptr_t)s->p->view.row_scale + 2 * (size_t)(s->row + i);
    double s0 = (double)f16_to_f32(super[0]), s1 = (double)f16_to_f32(super[1]);
    double aa = z->aa[i], ab = z->ab[i], bb = z->bb[i], x = 0.0, y = 0.0;
    if (!(aa > 0.0) || !(s0 > 0.0)) return;
    double reduced = bb > 0.0 ? aa - ab * ab / bb : aa;
    double right = bb > 0.0 ? z->ad[i] - ab * z->bd[i] / bb : z->ad[i];
    if (reduced > 1e-6 * aa) x = -right / reduced;
    uint16_t f0 = f32_to_f16((float)(s0 + x));
    double rounded = (double)f16_to_f32(f0);
    if (!(rounded > 0.0) || !isfinite(rounded)) return;
    x = rounded - s0;
    /* The second given the first as it is stored. */
    if (bb > 0.0) y = -(z->bd[i] + ab * x) / bb;
    uint16_t f1 = f32_to_f16((float)(s1 + y));
    y = (double)f16_to_f32(f1) - s1;
    /* A negative one would turn the biases' meaning around for no reason. */
    if (!isfinite(y) || s1 + y < 0.0) return;
    /* A gain must be more than the noise of fp32 products. */
    if (!(change(z, i, x, y) < -1e-6 * aa * s0 * s0)) return;
    super[0] = f0;
    super[1] = f1;
}

int rescale_strip(struct strip *s, struct error *err) {
    if (s->p->view.spec.kind == BCQ_FREE) return 0;
    size_t cells = (size_t)s->n * GPTQ_LANES;
    struct rescale z = {.a = malloc(cells * sizeof *z.a), .b = malloc(cells * sizeof *z.b)};
    int r = 0;
    if (!z.a || !z.b) {
        r = error_set(err, -ENOMEM, "super-scales: out of memory");
    } else {
        descend_difference(s);
        make_units(&z, s);
        make_quadratic(&z, s);
        for (int i = 0; i < s->n_rows; i++) rescale_row(&z, s, i);
        strip_from_codes(s);
    }
    free(z.a);
    free(z.b);
    return r;
}
