/* team.h - several devices as one back end: each has a part of every matrix.
 *
 * Owns      a back end of one device for each, what is exchanged between them.
 * Borrows   as backend.h says.
 * Thread    one.
 * Fails     as backend.h; a device's failure is reported with its number. Operations whose heads or
 *           widths do not divide fail like a device.
 * Cost      what each device does of its part, and an exchange for each matrix split by inputs.
 *
 * A matrix split by rows makes a buffer of which each device has its columns; rotations, attention and
 * gates work on a device's own columns and heads; a matrix split by inputs makes them whole again.
 * Everything else is computed by every device alike, to the same bits. */
#ifndef KERNELS_CUDA_TEAM_H
#define KERNELS_CUDA_TEAM_H

#include "kernels/cuda/exchange.h"

struct team {
    struct backend base;
    int n;
    struct backend *each[MOST_DEVICES];
    struct exchange exchange;
    int n_rows; /* that norms and products cover */
    int rc;     /* of operations that do not divide */
    struct error failure;
};

struct team_buffer {
    size_t n;
    struct buffer *part[MOST_DEVICES];
    bool split;           /* each device has its columns of (rows, width) */
    struct buffer *whole; /* on the first device, of columns put together; NULL: never asked for */
    bool joined;          /* whole is up to date */
    int rows, width;
};

struct team_weight {
    enum weight_split split;
    int rows, cols;
    struct weight *part[MOST_DEVICES];
    size_t bytes;
};

struct team_kv {
    int head_dim;
    struct kv *part[MOST_DEVICES];
};

static inline struct team *team_of(struct backend *be) {
    return reinterpret_cast<struct team *>(be);
}
static inline struct team_buffer *buffer_of(const struct buffer *b) {
    return reinterpret_cast<struct team_buffer *>(const_cast<struct buffer *>(b));
}
static inline const struct team_weight *weight_of(const struct weight *w) {
    return reinterpret_cast<const struct team_weight *>(w);
}
static inline struct team_kv *kv_of(struct kv *kv) {
    return reinterpret_cast<struct team_kv *>(kv);
}

int team_open(struct backend **ret, int n_devices, struct error *err);

/* Device d's back end, its device being the current one. */
static inline struct backend *team_at(struct team *team, int d) {
    exchange_use(&team->exchange, d);
    return team->each[d];
}

/* The operations of backend.h. */
void team_begin(struct backend *be, const struct batch *batch);
void team_embed(struct backend *be, struct buffer *dst, const struct weight *table, bool by_pos,
                int offset, float scale, bool accumulate);
void team_norm(struct backend *be, struct buffer *dst, const struct buffer *src,
               const struct norm_call *call);
void team_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                 const struct buffer *x);
void team_rope(struct backend *be, const struct rope_call *call);
void team_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                   const struct buffer *v);
void team_attention(struct backend *be, const struct attention_call *call);
void team_gate(struct backend *be, struct buffer *gate, const struct buffer *up, int width);
void team_add(struct backend *be, struct buffer *dst, const struct buffer *src, int width);
void team_gather(struct backend *be, struct buffer *dst, const struct buffer *src,
                 const int32_t *rows, int n_rows, int width);

#endif
