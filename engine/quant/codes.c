#include "engine/quant/codes.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/additive.h"
#include "engine/quant/beam.h"
#include "engine/quant/descend.h"
#include "engine/quant/strip.h"
#include "kernels/error.h"

enum { MAX_SWEEPS = 8 /* a sweep after the fifth has moved one code in 10^5 on real layers */ };

const char *codes_name(enum codes_search search) {
    static const char *const names[] = {"gptq", "greedy", "cd", "beam", "additive"};
    return (size_t)search < sizeof names / sizeof *names ? names[search] : NULL;
}

int codes_check(const struct codes_options *o, struct error *err) {
    if (!codes_name(o->search)) return error_set(err, -EINVAL, "codes: no such search");
    if (o->beam < 2 || o->beam > BEAM_MAX)
        return error_set(err, -EINVAL, "beam: %d is not in 2..%d", o->beam, BEAM_MAX);
    return 0;
}

/* Sweeps until no code moves. */
static int settle(struct strip *s, struct error *err) {
    size_t cells = (size_t)s->n * GPTQ_LANES;
    uint8_t *before = malloc(cells);
    if (!before) return error_set(err, -ENOMEM, "codes: out of memory");
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        memcpy(before, s->code, cells);
        descend_codes(s);
        if (!memcmp(before, s->code, cells)) break;
    }
    free(before);
    return 0;
}

/* The beam's codes where they beat loss: (GPTQ_LANES). */
static int search(struct strip *s, int width, double *loss, struct error *err) {
    struct gptq_levels levels = {s->n_levels, s->p->group_of, s->values, s->exact};
    int r = beam_search(s->p->factor, &levels, s->w, s->n_rows, width, s->q, s->rank, loss, err);
    if (r == 0) strip_codes(s);
    return r;
}

static void loop(struct strip *s, double *loss) {
    struct gptq_levels levels = {s->n_levels, s->p->group_of, s->values, s->exact};
    gptq_loop(s->p->factor, &levels, s->w, s->d, s->q, s->rank, loss);
    strip_codes(s);
}

/* Everything after the loop, whose losses are given. */
static int improve(struct strip *s, const struct codes_options *o, double *loss,
                   struct error *err) {
    int r = 0;
    if (o->search == CODES_BEAM || o->search == CODES_ADDITIVE) r = search(s, o->beam, loss, err);
    if (r == 0) r = settle(s, err);
    if (r == 0 && o->search == CODES_ADDITIVE) r = additive_strip(s, o->beam, err);
    return r;
}

int codes_find(struct strip *s, const struct codes_options *o, struct error *err) {
    double loss[GPTQ_LANES];
    if (o->search == CODES_GREEDY) {
        strip_nearest(s);
        strip_codes(s);
        return 0;
    }
    loop(s, loss);
    return o->search == CODES_LOOP ? 0 : improve(s, o, loss, err);
}

struct codes_saved {
    uint8_t *code;
    float *q;
};

int codes_save(struct codes_saved **ret, const struct strip *s, struct error *err) {
    size_t cells = (size_t)s->n * GPTQ_LANES;
    struct codes_saved *saved = calloc(1, sizeof *saved);
    if (saved) saved->code = malloc(cells);
    if (saved) saved->q = malloc(cells * sizeof *saved->q);
    if (!saved || !saved->code || !saved->q) {
        codes_saved_free(saved);
        return error_set(err, -ENOMEM, "codes: out of memory");
    }
    memcpy(saved->code, s->code, cells);
    memcpy(saved->q, s->q, cells * sizeof *saved->q);
    *ret = saved;
    return 0;
}

void codes_saved_free(struct codes_saved *saved) {
    if (!saved) return;
    free(saved->code);
    free(saved->q);
    free(saved);
}

void codes_restore(struct strip *s, const struct codes_saved *saved, int lane) {
    for (size_t k = 0; k < (size_t)s->n; k++) {
        size_t at = k * GPTQ_LANES + (size_t)lane;
        s->code[at] = saved->code[at];
        s->q[at] = saved->q[at];
    }
}

int codes_again(struct strip *s, const struct codes_options *o, struct error *err) {
    double before[GPTQ_LANES], loss[GPTQ_LANES], after[GPTQ_LANES];
    struct codes_saved *old;
    if (o->search == CODES_LOOP || o->search == CODES_GREEDY) return 0;
    int r = codes_save(&old, s, err);
    if (r < 0) return r;
    strip_loss(s, before);
    for (int i = 0; i < GPTQ_LANES; i++) loss[i] = INFINITY;
    if (o->search != CODES_DESCENT) r = search(s, o->beam, loss, err);
    if (r == 0) r = settle(s, err);
    if (r == 0) {
        strip_loss(s, after);
        for (int i = 0; i < GPTQ_LANES; i++)
            if (!(after[i] < before[i])) codes_restore(s, old, i);
        strip_from_codes(s);
    }
    codes_saved_free(old);
    return r;
}
