/* steps.h - the operations of a list and how they run.
 *
 * Owns      nothing.
 * Borrows   what a step names, until its launch.
 * Thread    the back end's.
 * Fails     as device.h: the first failure is kept.
 * Cost      a launch or two each.
 *
 * A step's bytes tell it from every other: the list is compared with earlier ones as memory. */
#ifndef KERNELS_CUDA_STEPS_H
#define KERNELS_CUDA_STEPS_H

#include "kernels/cuda/gpu.h"

extern "C" {
#include "kernels/backend.h"
}

struct gpu;

enum step_kind {
    STEP_EMBED,
    STEP_NORM,
    STEP_LINEAR,
    STEP_ROPE,
    STEP_STORE,
    STEP_ATTENTION,
    STEP_GATE,
    STEP_ADD,
    STEP_GATHER
};

struct step {
    int kind, bytes;
};
struct embed_step {
    struct step head;
    struct buffer *dst;
    const struct weight *table;
    int by_pos, offset, accumulate;
    float scale;
};
struct norm_step {
    struct step head;
    struct buffer *dst;
    const struct buffer *src;
    const struct weight *w, *b;
    int dim;
    float eps;
};
struct linear_step { /* then n_calls struct linear_call */
    struct step head;
    const struct buffer *x;
    long n_calls;
};
struct rope_step {
    struct step head;
    struct buffer *x;
    const double *inv_freq; /* on the device */
    int n_heads, head_dim, n_freq;
    float scale;
};
struct store_step {
    struct step head;
    struct kv *kv;
    const struct buffer *k, *v;
    long layer;
};
struct attention_step {
    struct step head;
    struct buffer *dst;
    const struct buffer *q;
    struct kv *kv;
    const float *slopes; /* on the device, or NULL */
    int layer, n_heads, window;
    float scale;
};
struct pair_step { /* gate, add */
    struct step head;
    struct buffer *dst;
    const struct buffer *src;
    long width;
};
struct gather_step {
    struct step head;
    struct buffer *dst;
    const struct buffer *src;
    int width, n_rows;
};

static inline struct linear_call *linear_calls(struct linear_step *s) {
    return reinterpret_cast<struct linear_call *>(s + 1);
}
static inline const struct linear_call *linear_calls(const struct linear_step *s) {
    return reinterpret_cast<const struct linear_call *>(s + 1);
}

/* Launches the step at `at`, and with it those after it that fit into the same kernel; returns what
 * follows. */
const char *step_run(struct gpu *gpu, const char *at, const char *end);

#endif
