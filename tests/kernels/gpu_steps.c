/* Steps of a whole layer: what runs together in one launch, or again as a graph, gives the bits of
 * operations that are waited for one by one. */
#include "tests/kernels/gpu.h"

enum { HIDDEN = 96, WIDE = 160, HEADS = 3, KV_HEADS = 1, DIM = 32, KV = KV_HEADS * DIM, FREQ = 16 };
enum { LAYER_MATRICES = 7, MOST = 40, ROUNDS = 5 };

struct layer {
    struct weight *linear[LAYER_MATRICES], *norm, *bias, *table;
    struct kv *kv;
    struct buffer *x, *in, *q, *k, *v, *a, *gate, *up, *out;
    void *blocks[LAYER_MATRICES + 3];
    double inv_freq[FREQ];
};

/* rows, columns of Q K V O gate up down */
static const int sizes[LAYER_MATRICES][2] = {{HEADS * DIM, HIDDEN}, {KV, HIDDEN},   {KV, HIDDEN},
                                             {HIDDEN, HEADS *DIM},  {WIDE, HIDDEN}, {WIDE, HIDDEN},
                                             {HIDDEN, WIDE}};

static struct buffer *room(size_t n) { return buffer_of(NULL, n); }

static void layer_new(struct layer *l, enum bcq_kind kind, bool with_bias) {
    struct weight_view view;
    struct error err;
    *l = (struct layer){0};
    for (int i = 0; i < LAYER_MATRICES; i++) {
        bool coded = kind == BCQ_FREE || i != 3; /* O is dense: another form in between */
        struct bcq_spec s = {kind, sizes[i][0], sizes[i][1], 2 + i % 2, 16, 0, 0, 0};
        if (kind != BCQ_FREE) {
            s.scale_bits = 4;
            s.bias_bits = 5;
        }
        view = (struct weight_view){.is_bcq = 1, .rows = s.rows, .cols = s.cols};
        l->blocks[i] = coded ? matrix_bcq(&view.bcq, &s, 7 + (uint64_t)i)
                             : matrix_dense(&view, DTYPE_F16, s.rows, s.cols, 5);
        l->linear[i] = weight_of(WEIGHT_LINEAR, &view);
    }
    l->blocks[LAYER_MATRICES] = matrix_dense(&view, DTYPE_F16, 1, HIDDEN, 3);
    l->norm = weight_of(WEIGHT_VECTOR, &view);
    l->blocks[LAYER_MATRICES + 1] = matrix_dense(&view, DTYPE_F16, 1, HIDDEN, 4);
    l->bias = with_bias ? weight_of(WEIGHT_VECTOR, &view) : NULL;
    l->blocks[LAYER_MATRICES + 2] = matrix_dense(&view, DTYPE_F16, 11, HIDDEN, 6);
    l->table = weight_of(WEIGHT_TABLE, &view);
    struct kv_spec spec = {1, KV_HEADS, DIM, 2 * N_BLOCKS, DTYPE_F16};
    if (backend_kv_new(be, &l->kv, &spec, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    l->x = room(MOST * HIDDEN);
    l->in = room(MOST * HIDDEN);
    l->q = room(MOST * HEADS * DIM);
    l->k = room(MOST * KV);
    l->v = room(MOST * KV);
    l->a = room(MOST * HEADS * DIM);
    l->gate = room(MOST * WIDE);
    l->up = room(MOST * WIDE);
    l->out = room(MOST * HIDDEN);
    for (int i = 0; i < FREQ; i++) l->inv_freq[i] = pow(10000, -(double)i / FREQ);
}

static void layer_free(struct layer *l) {
    struct buffer *buffers[] = {l->x, l->in, l->q, l->k, l->v, l->a, l->gate, l->up, l->out};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        backend_buffer_free(be, buffers[i]);
    for (int i = 0; i < LAYER_MATRICES; i++) backend_weight_free(be, l->linear[i]);
    backend_weight_free(be, l->norm);
    backend_weight_free(be, l->bias);
    backend_weight_free(be, l->table);
    backend_kv_free(be, l->kv);
    for (size_t i = 0; i < sizeof l->blocks / sizeof *l->blocks; i++) free(l->blocks[i]);
}

static void pause_if(bool waits) {
    struct error err;
    if (waits && backend_sync(be, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
}

static void product(struct layer *l, int i, struct buffer *dst, const struct buffer *x, bool add) {
    struct linear_call call = {.dst = dst, .w = l->linear[i], .accumulate = add};
    backend_linear(be, &call, 1, x);
    (void)l;
}

/* The same blocks in rows of n. */
static void tighten(struct batch *b, int32_t *blocks, int n) {
    for (int i = 0; i < b->n_seqs * n; i++) blocks[i] = b->blocks[i / n * b->max_blocks + i % n];
    b->blocks = blocks;
    b->max_blocks = n;
}

/* The state of n tokens from position `at` on after the layer; to be freed. tight: the table of blocks
 * is no longer than it has to be. waits: after each operation, so that each runs alone. */
static float *step(struct layer *l, int n, int at, bool tight, bool waits) {
    struct some_batch b;
    int32_t blocks[2 * N_BLOCKS];
    struct norm_call norm = {l->norm, l->bias, HIDDEN, 1e-5f};
    struct rope_call rope = {l->q, HEADS, DIM, l->inv_freq, FREQ, 1};
    struct attention_call attention = {l->a, l->q, l->kv, 0, HEADS, 0, 0.2f, NULL};
    batch_of(&b, n, at);
    if (tight) tighten(&b.batch, blocks, (at + (n + 1) / 2 - 1) / BACKEND_KV_BLOCK + 1);
    backend_begin(be, &b.batch);
    backend_embed(be, l->x, l->table, false, 0, 1, false);
    pause_if(waits);
    backend_norm(be, l->in, l->x, &norm);
    pause_if(waits);
    struct linear_call calls[3] = {{.dst = l->q, .w = l->linear[0]},
                                   {.dst = l->k, .w = l->linear[1]},
                                   {.dst = l->v, .w = l->linear[2]}};
    backend_linear(be, calls, 3, l->in);
    pause_if(waits);
    backend_rope(be, &rope);
    pause_if(waits);
    rope.x = l->k;
    rope.n_heads = KV_HEADS;
    backend_rope(be, &rope);
    pause_if(waits);
    backend_kv_store(be, l->kv, 0, l->k, l->v);
    pause_if(waits);
    backend_attention(be, &attention);
    pause_if(waits);
    product(l, 3, l->x, l->a, true);
    pause_if(waits);
    backend_norm(be, l->in, l->x, &norm);
    pause_if(waits);
    struct linear_call wide[2] = {{.dst = l->gate, .w = l->linear[4]},
                                  {.dst = l->up, .w = l->linear[5]}};
    backend_linear(be, wide, 2, l->in);
    pause_if(waits);
    backend_gate(be, l->gate, l->up, WIDE);
    pause_if(waits);
    product(l, 6, l->x, l->gate, true);
    pause_if(waits);
    int32_t last[2] = {n - 1, 0};
    backend_gather(be, l->out, l->x, last, 2, HIDDEN);
    pause_if(waits);
    backend_norm(be, l->out, l->out, &norm);
    return read_all(l->out, 2 * HIDDEN);
}

void check_steps(void) {
    static const int all[] = {2, 6, MOST, 2, 6}, few[] = {2, 6, 2};
    const int *counts = is_small() ? few : all;
    size_t n_counts = is_small() ? sizeof few / sizeof *few : sizeof all / sizeof *all;
    for (int turn = 0; turn < 4; turn++) {
        struct layer l, alone;
        enum bcq_kind kind = turn % 2 ? BCQ_FREE : BCQ_COMPACT;
        if (is_small() ? is_left_out(turn) && is_left_out(turn + 4) : is_left_out(turn)) continue;
        layer_new(&l, kind, turn >= 2);
        layer_new(&alone, kind, turn >= 2);
        int at = 0;
        for (size_t c = 0; c < n_counts; c++)
            for (int round = 0; round < ROUNDS; round++) {
                int n = counts[c];
                float *together = step(&l, n, at, false, false),
                      *one = step(&alone, n, at, false, true);
                bool finite = true;
                for (int i = 0; i < 2 * HIDDEN; i++) finite &= isfinite(one[i]) != 0;
                expect(finite && !memcmp(together, one, 2 * HIDDEN * sizeof *one),
                       "turn %d: step %d of %d tokens at %d differs from its operations", turn,
                       round, n, at);
                free(together);
                free(one);
                at += n / 2;
            }
        layer_free(&l);
        layer_free(&alone);
    }
}

/* Keys and values of the positions before `from`; rooms for steps up to `to`, for a room that grows
 * drops all graphs. */
static void fill(struct layer *l, int from, int to) {
    free(step(l, 4, to, false, false));
    for (int at = 0; at < from; at += MOST / 2) free(step(l, MOST, at, false, false));
}

/* Two sequences decode a token a step, over the ends of a block of positions and, in full, of a piece of
 * attention: the first step of a key is known, the second captured, all others replayed. */
void check_graphs(void) {
    if (is_left_out(3) && is_left_out(5)) return;
    int from = 100, to = is_small() ? 118 : 140;
    int keys = 1 + (to > 128), steps = to - from;
    long captures = 0, replays = 0;
    struct layer l, alone;
    layer_new(&l, BCQ_COMPACT, true);
    layer_new(&alone, BCQ_COMPACT, true);
    fill(&l, from, to);
    fill(&alone, from, to);
    for (int at = from; at < to; at++) {
        long before[2] = {0}, after[2] = {0};
        if (graph_counts) graph_counts(&before[0], &before[1]);
        float *together = step(&l, 2, at, true, false);
        if (graph_counts) graph_counts(&after[0], &after[1]);
        captures += after[0] - before[0];
        replays += after[1] - before[1];
        float *one = step(&alone, 2, at, false, true);
        expect(isfinite(one[0]) && !memcmp(together, one, 2 * HIDDEN * sizeof *one),
               "a step at %d differs", at);
        free(together);
        free(one);
    }
    if (graph_counts)
        expect(captures == keys && replays == steps - keys,
               "%d steps of %d keys: %ld graphs, launched %ld times", steps, keys, captures,
               replays);
    layer_free(&l);
    layer_free(&alone);
}
