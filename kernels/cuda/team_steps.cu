#include <errno.h>

#include "kernels/cuda/team.h"

static void refuse(struct team *team, const char *what, int n) {
    if (!team->rc)
        team->rc = error_set(&team->failure, -EINVAL, "%s: %d over %d devices", what, n, team->n);
}

/* A device's share of n; 0 after a refusal. */
static int share(struct team *team, int n, const char *what) {
    if (n % team->n) refuse(team, what, n);
    return team->rc ? 0 : n / team->n;
}

void team_begin(struct backend *be, const struct batch *batch) {
    struct team *team = team_of(be);
    team->n_rows = batch->n_tokens;
    for (int d = 0; d < team->n; d++) backend_begin(team_at(team, d), batch);
}

/* What an operation makes of a buffer. */
static void written(struct team *team, struct team_buffer *b, bool split, int width) {
    b->split = split;
    b->joined = false;
    b->rows = team->n_rows;
    b->width = width;
}

static bool needs_whole(struct team *team, const struct team_buffer *b, int width) {
    if (b->split) refuse(team, "an operation wants all columns of a split buffer", width);
    return !team->rc;
}

void team_embed(struct backend *be, struct buffer *dst, const struct weight *table, bool by_pos,
                int offset, float scale, bool accumulate) {
    struct team *team = team_of(be);
    struct team_buffer *b = buffer_of(dst);
    if (team->rc || (accumulate && !needs_whole(team, b, weight_of(table)->cols))) return;
    for (int d = 0; d < team->n; d++)
        backend_embed(team_at(team, d), b->part[d], weight_of(table)->part[d], by_pos, offset,
                      scale, accumulate);
    written(team, b, false, weight_of(table)->cols);
}

void team_norm(struct backend *be, struct buffer *dst, const struct buffer *src,
               const struct norm_call *call) {
    struct team *team = team_of(be);
    if (!needs_whole(team, buffer_of(src), call->dim)) return;
    for (int d = 0; d < team->n; d++) {
        struct norm_call own = *call;
        own.w = weight_of(call->w)->part[d];
        own.b = call->b ? weight_of(call->b)->part[d] : NULL;
        backend_norm(team_at(team, d), buffer_of(dst)->part[d], buffer_of(src)->part[d], &own);
    }
    written(team, buffer_of(dst), false, call->dim);
}

/* Device d's part of a call; its rows, or all of them. */
static struct linear_call part_of(const struct linear_call *call, int d) {
    struct linear_call own = *call;
    own.dst = buffer_of(call->dst)->part[d];
    own.w = weight_of(call->w)->part[d];
    own.bias = call->bias ? weight_of(call->bias)->part[d] : NULL;
    return own;
}

static void linear_by_rows(struct team *team, const struct linear_call *calls, int n_calls,
                           const struct team_buffer *x) {
    struct linear_call own[MAX_SET];
    for (int i = 0; i < n_calls; i++) {
        bool split = weight_of(calls[i].w)->split == SPLIT_ROWS;
        if (calls[i].accumulate && buffer_of(calls[i].dst)->split != split)
            refuse(team, "sums that are split another way", weight_of(calls[i].w)->rows);
    }
    if (!needs_whole(team, x, weight_of(calls[0].w)->cols)) return;
    for (int d = 0; d < team->n; d++) {
        for (int i = 0; i < n_calls; i++) own[i] = part_of(&calls[i], d);
        backend_linear(team_at(team, d), own, n_calls, x->part[d]);
    }
    for (int i = 0; i < n_calls; i++)
        written(team, buffer_of(calls[i].dst), weight_of(calls[i].w)->split == SPLIT_ROWS,
                weight_of(calls[i].w)->rows);
}

/* The first device's part of each sum has the bias. */
static void linear_by_inputs(struct team *team, const struct linear_call *call,
                             const struct team_buffer *x) {
    const struct team_weight *w = weight_of(call->w);
    struct exchange *exchange = &team->exchange;
    size_t count = (size_t)(team->n_rows > 0 ? team->n_rows : 0) * (size_t)w->rows;
    float *dst[MOST_DEVICES];
    if (!x->split || call->act != ACT_NONE || (call->accumulate && buffer_of(call->dst)->split))
        refuse(team, "a matrix split by inputs wants a split input, and sums alone", w->cols);
    if (team->rc || !exchange_room(exchange, count)) return;
    for (int d = 0; d < team->n; d++) {
        struct linear_call own = part_of(call, d);
        struct buffer part = {count, static_cast<float *>(exchange->part[d].data)};
        dst[d] = own.dst->data;
        own.dst = &part;
        own.accumulate = false;
        if (d) own.bias = NULL;
        backend_linear(team_at(team, d), &own, 1, x->part[d]);
        queue_flush(gpu_of(team->each[d]));
    }
    exchange_sum(exchange, dst, count, call->accumulate);
    written(team, buffer_of(call->dst), false, w->rows);
}

void team_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                 const struct buffer *x) {
    struct team *team = team_of(be);
    for (int i = 0; i < n_calls && !team->rc;) {
        int first = i;
        while (i < n_calls && i - first < MAX_SET && weight_of(calls[i].w)->split != SPLIT_INPUTS)
            i++;
        if (i > first)
            linear_by_rows(team, calls + first, i - first, buffer_of(x));
        else
            linear_by_inputs(team, &calls[i++], buffer_of(x));
    }
}

void team_rope(struct backend *be, const struct rope_call *call) {
    struct team *team = team_of(be);
    struct team_buffer *b = buffer_of(call->x);
    struct rope_call own = *call;
    if (b->split) own.n_heads = share(team, call->n_heads, "heads to rotate");
    for (int d = 0; d < team->n && !team->rc; d++) {
        own.x = b->part[d];
        backend_rope(team_at(team, d), &own);
    }
    b->joined = false;
}

void team_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                   const struct buffer *v) {
    struct team *team = team_of(be);
    if (!buffer_of(k)->split || !buffer_of(v)->split)
        refuse(team, "keys and values that are not split", layer);
    for (int d = 0; d < team->n && !team->rc; d++)
        backend_kv_store(team_at(team, d), kv_of(kv)->part[d], layer, buffer_of(k)->part[d],
                         buffer_of(v)->part[d]);
}

void team_attention(struct backend *be, const struct attention_call *call) {
    struct team *team = team_of(be);
    struct attention_call own = *call;
    if (!buffer_of(call->q)->split) refuse(team, "queries that are not split", call->n_heads);
    own.n_heads = share(team, call->n_heads, "heads");
    for (int d = 0; d < team->n && !team->rc; d++) {
        own.dst = buffer_of(call->dst)->part[d];
        own.q = buffer_of(call->q)->part[d];
        own.kv = kv_of(call->kv)->part[d];
        own.slopes = call->slopes ? call->slopes + d * own.n_heads : NULL;
        backend_attention(team_at(team, d), &own);
    }
    written(team, buffer_of(call->dst), true, call->n_heads * kv_of(call->kv)->head_dim);
}

typedef void pair_op(struct backend *be, struct buffer *dst, const struct buffer *src, int width);

/* Of what both have alike: their columns, or all. */
static void pairwise(struct backend *be, pair_op *op, struct buffer *dst, const struct buffer *src,
                     int width) {
    struct team *team = team_of(be);
    struct team_buffer *to = buffer_of(dst);
    const struct team_buffer *from = buffer_of(src);
    int own = to->split ? share(team, width, "a split width") : width;
    if (to->split != from->split) refuse(team, "a split buffer meets one that is not", width);
    for (int d = 0; d < team->n && !team->rc; d++)
        op(team_at(team, d), to->part[d], from->part[d], own);
    to->joined = false;
}

void team_gate(struct backend *be, struct buffer *gate, const struct buffer *up, int width) {
    pairwise(be, backend_gate, gate, up, width);
}

void team_add(struct backend *be, struct buffer *dst, const struct buffer *src, int width) {
    pairwise(be, backend_add, dst, src, width);
}

void team_gather(struct backend *be, struct buffer *dst, const struct buffer *src,
                 const int32_t *rows, int n_rows, int width) {
    struct team *team = team_of(be);
    if (!needs_whole(team, buffer_of(src), width)) return;
    team->n_rows = n_rows;
    for (int d = 0; d < team->n; d++)
        backend_gather(team_at(team, d), buffer_of(dst)->part[d], buffer_of(src)->part[d], rows,
                       n_rows, width);
    written(team, buffer_of(dst), false, width);
}
