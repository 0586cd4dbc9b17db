#include "engine/train/teacher.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/train/network.h"
#include "engine/train/params.h"
#include "kernels/error.h"
#include "kernels/float16.h"

/* Tokens of a group: each block's weights are read once for so many. */
enum { GROUP_TOKENS = 2048 };

struct teacher {
    struct network *net;
    struct params *params;
    struct teacher_text text;
    int n_seqs, group; /* windows at a time, windows of a group */
    uint16_t **states; /* (groups) each (group, ctx, width) or NULL */
    float *x;          /* (group, ctx, hidden) */
    float *out;        /* (n_seqs, ctx, width) */
};

int teacher_new(struct teacher **ret, struct network *net, struct params *params, int n_seqs,
                const struct teacher_text *text, struct error *err) {
    struct teacher *t = calloc(1, sizeof *t);
    if (!t) return error_set(err, -ENOMEM, "teacher: out of memory");
    *t = (struct teacher){.net = net, .params = params, .text = *text, .n_seqs = n_seqs};
    t->group = GROUP_TOKENS / (n_seqs * text->ctx) * n_seqs;
    if (t->group < n_seqs) t->group = n_seqs;
    size_t ctx = (size_t)text->ctx;
    t->states = calloc((size_t)(text->n_windows / t->group + 1), sizeof *t->states);
    t->x = malloc((size_t)t->group * ctx * (size_t)text->hidden * sizeof *t->x);
    t->out = malloc((size_t)n_seqs * ctx * (size_t)text->width * sizeof *t->out);
    if (!t->states || !t->x || !t->out) {
        teacher_free(t);
        return error_set(err, -ENOMEM, "teacher: out of memory");
    }
    *ret = t;
    return 0;
}

void teacher_free(struct teacher *t) {
    if (!t) return;
    for (int i = 0; t->states && i <= t->text.n_windows / t->group; i++) free(t->states[i]);
    free(t->states);
    free(t->x);
    free(t->out);
    free(t);
}

static float *state_at(struct teacher *t, int window) {
    return t->x + (size_t)window * (size_t)t->text.ctx * (size_t)t->text.hidden;
}

static int at_once(const struct teacher *t, int window, int n) {
    return n - window < t->n_seqs ? n - window : t->n_seqs;
}

static int run_blocks(struct teacher *t, int n, struct error *err) {
    struct block *block = network_block(t->net);
    int ctx = t->text.ctx, r = 0;
    for (int layer = 0; r == 0 && layer < t->text.n_layers; layer++) {
        struct params_block p;
        r = params_block_read(&p, t->params, layer, err);
        if (r < 0) return r;
        struct block_weights w = params_block_view(&p);
        for (int i = 0; i < n; i += t->n_seqs)
            block_forward(block, &w, state_at(t, i), state_at(t, i), at_once(t, i, n), ctx, NULL);
        params_block_free(&p);
    }
    return r;
}

static int narrow(uint16_t *dst, const float *src, size_t n, struct error *err) {
    for (size_t i = 0; i < n; i++) {
        if (!(fabsf(src[i]) <= 65504.0f))
            return error_set(err, -ERANGE,
                             "the original model: its last state holds %g, not within fp16",
                             (double)src[i]);
        dst[i] = f32_to_f16(src[i]);
    }
    return 0;
}

static int make_group(struct teacher *t, int group, struct error *err) {
    int first = group * t->group, n = t->text.n_windows - first, ctx = t->text.ctx, r = 0;
    if (n > t->group) n = t->group;
    size_t each = (size_t)ctx * (size_t)t->text.width;
    uint16_t *states = malloc((size_t)n * each * sizeof *states);
    if (!states) return error_set(err, -ENOMEM, "teacher: out of memory");
    for (int i = 0; i < n; i += t->n_seqs)
        network_embed(t->net, t->text.tokens + (size_t)(first + i) * (size_t)ctx, at_once(t, i, n),
                      ctx, state_at(t, i));
    r = run_blocks(t, n, err);
    for (int i = 0; r == 0 && i < n; i += t->n_seqs) {
        int seqs = at_once(t, i, n);
        network_finish(t->net, state_at(t, i), seqs * ctx, t->out);
        r = narrow(states + (size_t)i * each, t->out, (size_t)seqs * each, err);
    }
    if (r < 0)
        free(states);
    else
        t->states[group] = states;
    return r;
}

int teacher_states(struct teacher *t, int window, float *states, struct error *err) {
    int group = window / t->group;
    size_t each = (size_t)t->text.ctx * (size_t)t->text.width;
    int r = t->states[group] ? 0 : make_group(t, group, err);
    if (r < 0) return r;
    const uint16_t *from = t->states[group] + (size_t)(window % t->group) * each;
    for (size_t i = 0; i < each; i++) states[i] = f16_to_f32(from[i]);
    return 0;
}
