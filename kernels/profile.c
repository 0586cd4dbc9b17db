#include "kernels/profile.h"

#include "kernels/backend.h"

static void add(struct profile *p, enum profile_part part, double started) {
    p->seconds[part] += p->now() - started;
    p->calls[part]++;
}

static int timed_read(struct backend *be, float *dst, const struct buffer *src, size_t offset,
                      size_t n, struct error *err) {
    double started = be->profile->now();
    int r = be->profile->ops->buffer_read(be, dst, src, offset, n, err);
    add(be->profile, PROFILE_OTHER, started);
    return r;
}

static void timed_begin(struct backend *be, const struct batch *batch) {
    be->profile->gathered = false;
    be->profile->ops->begin(be, batch);
}

static void timed_embed(struct backend *be, struct buffer *dst, const struct weight *table,
                        bool by_pos, int offset, float scale, bool accumulate) {
    double started = be->profile->now();
    be->profile->ops->embed(be, dst, table, by_pos, offset, scale, accumulate);
    add(be->profile, PROFILE_OTHER, started);
}

static void timed_norm(struct backend *be, struct buffer *dst, const struct buffer *src,
                       const struct norm_call *call) {
    double started = be->profile->now();
    be->profile->ops->norm(be, dst, src, call);
    add(be->profile, PROFILE_NORM, started);
}

static void timed_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                         const struct buffer *x) {
    double started = be->profile->now();
    be->profile->ops->linear(be, calls, n_calls, x);
    add(be->profile, be->profile->gathered ? PROFILE_OUTPUT : PROFILE_LINEAR, started);
}

static void timed_rope(struct backend *be, const struct rope_call *call) {
    double started = be->profile->now();
    be->profile->ops->rope(be, call);
    add(be->profile, PROFILE_ROPE, started);
}

static void timed_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                           const struct buffer *v) {
    double started = be->profile->now();
    be->profile->ops->kv_store(be, kv, layer, k, v);
    add(be->profile, PROFILE_KV_STORE, started);
}

static void timed_attention(struct backend *be, const struct attention_call *call) {
    double started = be->profile->now();
    be->profile->ops->attention(be, call);
    add(be->profile, PROFILE_ATTENTION, started);
}

static void timed_gate(struct backend *be, struct buffer *gate, const struct buffer *up,
                       int width) {
    double started = be->profile->now();
    be->profile->ops->gate(be, gate, up, width);
    add(be->profile, PROFILE_GATE, started);
}

static void timed_add(struct backend *be, struct buffer *dst, const struct buffer *src, int width) {
    double started = be->profile->now();
    be->profile->ops->add(be, dst, src, width);
    add(be->profile, PROFILE_OTHER, started);
}

static void timed_gather(struct backend *be, struct buffer *dst, const struct buffer *src,
                         const int32_t *rows, int n_rows, int width) {
    double started = be->profile->now();
    be->profile->gathered = true;
    be->profile->ops->gather(be, dst, src, rows, n_rows, width);
    add(be->profile, PROFILE_OTHER, started);
}

void profile_start(struct profile *p, struct backend *be, double (*now)(void)) {
    *p = (struct profile){.be = be, .ops = be->ops, .now = now, .timed = *be->ops};
    p->timed.buffer_read = timed_read;
    p->timed.begin = timed_begin;
    p->timed.embed = timed_embed;
    p->timed.norm = timed_norm;
    p->timed.linear = timed_linear;
    p->timed.rope = timed_rope;
    p->timed.kv_store = timed_kv_store;
    p->timed.attention = timed_attention;
    p->timed.gate = timed_gate;
    p->timed.add = timed_add;
    p->timed.gather = timed_gather;
    be->profile = p;
    be->ops = &p->timed;
}

void profile_stop(struct profile *p) {
    p->be->ops = p->ops;
    p->be->profile = NULL;
}

const char *profile_name(enum profile_part part) {
    static const char *const names[PROFILE_PARTS] = {[PROFILE_LINEAR] = "linear layers",
                                                     [PROFILE_OUTPUT] = "output matrix",
                                                     [PROFILE_ATTENTION] = "attention",
                                                     [PROFILE_KV_STORE] = "keys, values",
                                                     [PROFILE_ROPE] = "rope",
                                                     [PROFILE_NORM] = "norms",
                                                     [PROFILE_GATE] = "gate",
                                                     [PROFILE_OTHER] = "other"};
    return names[part];
}
