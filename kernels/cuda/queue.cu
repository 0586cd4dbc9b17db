#include "kernels/cuda/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/steps.h"

enum {
    MOST_TOKENS = 256,   /* of a batch whose list may become a graph: prompts rarely come again */
    MOST_BYTES = 1 << 20 /* of a list */
};

/* -- Graphs ---------------------------------------------------------------------------------- */

static void drop(struct queue_graph *g) {
    if (g->exec) cudaGraphExecDestroy(g->exec);
    free(g->list);
    *g = queue_graph{};
}

void queue_drop_graphs(struct queue *queue) {
    for (int i = 0; i < N_GRAPHS; i++) drop(&queue->graphs[i]);
}

void queue_free(struct queue *queue) {
    queue_drop_graphs(queue);
    free(queue->list);
}

static struct queue_key key_of(const struct gpu *gpu) {
    struct queue_key key;
    memset(&key, 0, sizeof key); /* compared as bytes */
    key.n_tokens = gpu->n_tokens;
    key.n_rows = gpu->n_rows;
    key.n_splits = splits_of(gpu->longest);
    key.max_blocks = gpu->batch.max_blocks;
    key.n_tiles = gpu->batch.n_tiles;
    key.tokens = gpu->tokens;
    return key;
}

static struct queue_graph *find(struct queue *queue, const struct queue_key *key) {
    for (int i = 0; i < N_GRAPHS; i++) {
        struct queue_graph *g = &queue->graphs[i];
        if (g->list && g->bytes == queue->bytes && !memcmp(&g->key, key, sizeof *key) &&
            !memcmp(g->list, queue->list, queue->bytes))
            return g;
    }
    return NULL;
}

/* Keeps a list so that it is known when it comes again; without memory it just is not. */
static void keep(struct queue *queue, const struct queue_key *key) {
    struct queue_graph *oldest = &queue->graphs[0];
    for (int i = 1; i < N_GRAPHS; i++)
        if (queue->graphs[i].used < oldest->used) oldest = &queue->graphs[i];
    drop(oldest);
    oldest->list = static_cast<char *>(malloc(queue->bytes));
    if (!oldest->list) return;
    memcpy(oldest->list, queue->list, queue->bytes);
    oldest->bytes = queue->bytes;
    oldest->key = *key;
    oldest->used = ++queue->clock;
}

static void run_list(struct gpu *gpu) {
    const char *end = gpu->queue.list + gpu->queue.bytes;
    for (const char *at = gpu->queue.list; at < end && !gpu->rc;) at = step_run(gpu, at, end);
}

/* Runs the list under capture. False when there is no graph of it: then nothing has run. Memory that
 * moved meanwhile has dropped all graphs, g among them. */
static bool capture(struct gpu *gpu, struct queue_graph *g) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeRelaxed) != cudaSuccess)
        return false;
    int n_rows = gpu->n_rows;
    run_list(gpu);
    bool good = cudaStreamEndCapture(gpu->stream, &graph) == cudaSuccess && !gpu->rc && g->list;
    if (good) good = cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
    if (graph) cudaGraphDestroy(graph);
    if (good) {
        g->exec = exec;
        g->n_rows_after = gpu->n_rows;
        return true;
    }
    gpu->n_rows = n_rows;
    cudaGetLastError();
    return false;
}

static void run(struct gpu *gpu) {
    struct queue *queue = &gpu->queue;
    if (queue->plain || gpu_mute || gpu->n_tokens > MOST_TOKENS) {
        run_list(gpu);
        return;
    }
    struct queue_key key = key_of(gpu);
    struct queue_graph *g = find(queue, &key);
    if (!g) {
        keep(queue, &key);
        run_list(gpu);
        return;
    }
    g->used = ++queue->clock;
    if (!g->exec && !capture(gpu, g)) {
        if (!gpu->rc) run_list(gpu);
        queue->plain = true; /* what fails once fails again */
        return;
    }
    gpu->n_rows = g->n_rows_after;
    gpu_good(gpu, cudaGraphLaunch(g->exec, gpu->stream), "a step");
}

void queue_flush(struct gpu *gpu) {
    struct queue *queue = &gpu->queue;
    if (!queue->bytes) return;
    /* Every list makes the angles that it needs, so that a graph never leans on another. */
    for (int i = 0; i < N_ANGLES; i++) gpu->angles[i].inv_freq = NULL;
    gpu->next_angles = 0;
    gpu->ready.x = NULL;
    if (!gpu->rc) run(gpu);
    queue->bytes = 0;
    queue->gathers = false;
}

void queue_forget(struct gpu *gpu) {
    queue_flush(gpu);
    queue_drop_graphs(&gpu->queue);
}

/* -- The list -------------------------------------------------------------------------------- */

/* Zeroed room for an operation at the end of the list; NULL: nothing is to be written down. */
static void *append(struct gpu *gpu, enum step_kind kind, size_t bytes) {
    struct queue *queue = &gpu->queue;
    if (gpu->rc) return NULL;
    bytes = (bytes + 7) / 8 * 8;
    if (queue->bytes + bytes > MOST_BYTES) queue_flush(gpu);
    if (queue->bytes + bytes > queue->room) {
        size_t room = 2 * queue->room + 4 * bytes;
        char *more = static_cast<char *>(realloc(queue->list, room));
        if (!more) {
            gpu->rc = error_set(&gpu->failure, -ENOMEM, "no memory for a list of operations");
            return NULL;
        }
        queue->list = more;
        queue->room = room;
    }
    struct step *step = reinterpret_cast<struct step *>(queue->list + queue->bytes);
    memset(static_cast<void *>(step), 0, bytes);
    step->kind = kind;
    step->bytes = (int)bytes;
    queue->bytes += bytes;
    return step;
}

void queue_embed(struct backend *be, struct buffer *dst, const struct weight *table, bool by_pos,
                 int offset, float scale, bool accumulate) {
    struct embed_step *s =
        static_cast<struct embed_step *>(append(gpu_of(be), STEP_EMBED, sizeof *s));
    if (!s) return;
    s->dst = dst;
    s->table = table;
    s->by_pos = by_pos;
    s->offset = offset;
    s->scale = scale;
    s->accumulate = accumulate;
}

void queue_norm(struct backend *be, struct buffer *dst, const struct buffer *src,
                const struct norm_call *call) {
    struct norm_step *s = static_cast<struct norm_step *>(append(gpu_of(be), STEP_NORM, sizeof *s));
    if (!s) return;
    s->dst = dst;
    s->src = src;
    s->w = call->w;
    s->b = call->b;
    s->dim = call->dim;
    s->eps = call->eps;
}

void queue_linear(struct backend *be, const struct linear_call *calls, int n_calls,
                  const struct buffer *x) {
    size_t bytes = sizeof(struct linear_step) + (size_t)n_calls * sizeof *calls;
    struct linear_step *s =
        static_cast<struct linear_step *>(append(gpu_of(be), STEP_LINEAR, bytes));
    if (!s) return;
    s->x = x;
    s->n_calls = n_calls;
    struct linear_call *to = linear_calls(s);
    for (int i = 0; i < n_calls; i++) { /* one by one: what pads a struct is not copied */
        to[i].dst = calls[i].dst;
        to[i].w = calls[i].w;
        to[i].bias = calls[i].bias;
        to[i].act = calls[i].act;
        to[i].accumulate = calls[i].accumulate;
    }
}

void queue_rope(struct backend *be, const struct rope_call *call) {
    struct gpu *gpu = gpu_of(be);
    if (gpu->rc || call->n_freq <= 0) return;
    const void *freq =
        gpu_constant(gpu, call->inv_freq, (size_t)call->n_freq * sizeof *call->inv_freq);
    if (!freq) return;
    struct rope_step *s = static_cast<struct rope_step *>(append(gpu, STEP_ROPE, sizeof *s));
    if (!s) return;
    s->x = call->x;
    s->inv_freq = static_cast<const double *>(freq);
    s->n_heads = call->n_heads;
    s->head_dim = call->head_dim;
    s->n_freq = call->n_freq;
    s->scale = call->scale;
}

void queue_kv_store(struct backend *be, struct kv *kv, int layer, const struct buffer *k,
                    const struct buffer *v) {
    struct store_step *s =
        static_cast<struct store_step *>(append(gpu_of(be), STEP_STORE, sizeof *s));
    if (!s) return;
    s->kv = kv;
    s->k = k;
    s->v = v;
    s->layer = layer;
}

void queue_attention(struct backend *be, const struct attention_call *call) {
    struct gpu *gpu = gpu_of(be);
    const float *slopes = NULL;
    if (gpu->rc) return;
    if (call->slopes) {
        slopes = static_cast<const float *>(
            gpu_constant(gpu, call->slopes, (size_t)call->n_heads * sizeof(float)));
        if (!slopes) return;
    }
    struct attention_step *s =
        static_cast<struct attention_step *>(append(gpu, STEP_ATTENTION, sizeof *s));
    if (!s) return;
    s->dst = call->dst;
    s->q = call->q;
    s->kv = call->kv;
    s->slopes = slopes;
    s->layer = call->layer;
    s->n_heads = call->n_heads;
    s->window = call->window;
    s->scale = call->scale;
}

static void append_pair(struct gpu *gpu, enum step_kind kind, struct buffer *dst,
                        const struct buffer *src, int width) {
    struct pair_step *s = static_cast<struct pair_step *>(append(gpu, kind, sizeof *s));
    if (!s) return;
    s->dst = dst;
    s->src = src;
    s->width = width;
}

void queue_gate(struct backend *be, struct buffer *gate, const struct buffer *up, int width) {
    append_pair(gpu_of(be), STEP_GATE, gate, up, width);
}

void queue_add(struct backend *be, struct buffer *dst, const struct buffer *src, int width) {
    append_pair(gpu_of(be), STEP_ADD, dst, src, width);
}

/* Rows travel now; the stream keeps them behind what earlier lists read. */
void queue_gather(struct backend *be, struct buffer *dst, const struct buffer *src,
                  const int32_t *rows, int n_rows, int width) {
    struct gpu *gpu = gpu_of(be);
    size_t bytes = (size_t)(n_rows > 0 ? n_rows : 0) * sizeof *rows;
    if (gpu->queue.gathers) queue_flush(gpu);
    if (bytes) {
        if (!gpu_grow(gpu, &gpu->rows_room, bytes)) return;
        if (!gpu_good(gpu,
                      cudaMemcpyAsync(gpu->rows_room.data, rows, bytes, cudaMemcpyHostToDevice,
                                      gpu->stream),
                      "rows to gather"))
            return;
    }
    struct gather_step *s = static_cast<struct gather_step *>(append(gpu, STEP_GATHER, sizeof *s));
    if (!s) return;
    s->dst = dst;
    s->src = src;
    s->width = width;
    s->n_rows = n_rows;
    gpu->queue.gathers = true;
}
