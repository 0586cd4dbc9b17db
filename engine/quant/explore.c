#include "engine/quant/explore.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "engine/quant/descend.h"
#include "engine/quant/params.h"
#include "engine/quant/strip.h"
#include "kernels/error.h"

/* What every row has found so far. */
struct found {
    double loss[GPTQ_LANES];
    size_t size;     /* of one row's parameters */
    uint8_t *params; /* (GPTQ_LANES, size) */
    uint8_t *code;   /* (n, GPTQ_LANES) */
    float *q;        /* the same shape: outliers have no code */
};

static void keep_better(struct strip *s, struct found *f) {
    double loss[GPTQ_LANES];
    strip_loss(s, loss);
    for (int i = 0; i < s->n_rows; i++) {
        if (!(loss[i] < f->loss[i])) continue;
        f->loss[i] = loss[i];
        params_save(&s->p->view, s->row + i, f->params + (size_t)i * f->size);
        for (size_t at = (size_t)i; at < (size_t)s->n * GPTQ_LANES; at += GPTQ_LANES) {
            f->code[at] = s->code[at];
            f->q[at] = s->q[at];
        }
    }
}

static void take_back(struct strip *s, const struct found *f) {
    for (int i = 0; i < s->n_rows; i++) {
        params_restore(&s->p->view, s->row + i, f->params + (size_t)i * f->size);
        for (size_t at = (size_t)i; at < (size_t)s->n * GPTQ_LANES; at += GPTQ_LANES) {
            s->code[at] = f->code[at];
            s->q[at] = f->q[at];
        }
    }
    strip_from_codes(s);
}

int explore_strip(struct strip *s, int n, explore_lay *lay, void *arg, struct error *err) {
    struct found f = {.size = params_size(&s->p->view)};
    int r = 0;
    for (int i = 0; i < GPTQ_LANES; i++) f.loss[i] = INFINITY;
    f.params = malloc(GPTQ_LANES * f.size);
    f.code = calloc((size_t)s->n, GPTQ_LANES);
    f.q = calloc((size_t)s->n * GPTQ_LANES, sizeof *f.q);
    if (!f.params || !f.code || !f.q) r = error_set(err, -ENOMEM, "exploration: out of memory");
    for (int v = 0; v < n && r == 0; v++) {
        r = lay(arg, v, err);
        if (r < 0) break;
        strip_levels(s);
        strip_loop(s);
        descend_codes(s);
        keep_better(s, &f);
    }
    if (r == 0) take_back(s, &f);
    free(f.params);
    free(f.code);
    free(f.q);
    return r;
}
