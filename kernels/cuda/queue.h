/* queue.h - operations of a step, written down first and run together.
 *
 * Owns      the list of operations, graphs of lists that came again.
 * Borrows   buffers, weights and pools that operations name, until the flush; freeing any of them
 *           flushes first (queue_forget()).
 * Thread    the back end's.
 * Fails     as device.h: the first failure is kept.
 * Cost      some 50 ns an operation; a list that came before is one launch.
 *
 * Whatever needs results, or changes what operations read, calls queue_flush() first. A list equal to
 * one that ran before, on tables of the same place and shape, is captured as a graph and replayed from
 * then on; a graph dies with the device memory it names. Neighbours in a list may run as one kernel:
 * their results are the same bits as one by one. */
#ifndef KERNELS_CUDA_QUEUE_H
#define KERNELS_CUDA_QUEUE_H

#include <stddef.h>

#include "kernels/cuda/gpu.h"

extern "C" {
#include "kernels/backend.h"
}

struct gpu;

enum { N_GRAPHS = 32 };

/* What graphs depend on beside the list. */
struct queue_key {
    int n_tokens, n_rows, n_splits, max_blocks, n_tiles;
    const void *tokens;
};

struct queue_graph {
    struct queue_key key;
    char *list; /* NULL: not in use */
    size_t bytes;
    unsigned long used;
    int n_rows_after;
    cudaGraphExec_t exec; /* NULL: seen once */
};

struct queue {
    char *list;
    size_t bytes, room;
    bool gathers; /* the list reads the rows to gather */
    bool plain;   /* no graphs */
    struct queue_graph graphs[N_GRAPHS];
    unsigned long clock;
};

void queue_free(struct queue *queue);
/* Runs what is on the list. */
void queue_flush(struct gpu *gpu);
/* Device memory that operations may name is about to go: flushes, drops the graphs. */
void queue_forget(struct gpu *gpu);
/* Drops the graphs: memory that kernels were told of has moved. */
void queue_drop_graphs(struct queue *queue);

/* The operations of backend.h. */
void queue_embed(struct backend *be, struct buffer *dst, const struct weight *table, bool by_pos,
                 int offset, float scale, bool accumulate);
void queue_norm(struct backend *be, struct buffer *dst, const struct buffer *src,
                const struct norm_call *call);
void queue_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                  const struct buffer *x);
void queue_rope(struct backend *be, const struct rope_call *call);
void queue_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                    const struct buffer *v);
void queue_attention(struct backend *be, const struct attention_call *call);
void queue_gate(struct backend *be, struct buffer *gate, const struct buffer *up, int width);
void queue_add(struct backend *be, struct buffer *dst, const struct buffer *src, int width);
void queue_gather(struct backend *be, struct buffer *dst, const struct buffer *src,
                  const int32_t *rows, int n_rows, int width);

#endif
