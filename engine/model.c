#include "engine/model.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model_arch.h"
#include "engine/model_weights.h"
#include "engine/positions.h"
#include "engine/source.h"
#include "kernels/error.h"

/* The hidden state and everything a block writes; widths in model_buffers(). */
struct model {
    struct backend *be;
    struct model_weights weights;
    struct model_options options;

    int q_width, kv_width; /* n_heads * head_dim, n_kv_heads * head_dim */
    double *inv_freq;      /* (head_dim / 2) when positions are rotary */
    float *slopes;         /* (n_heads) when positions are ALiBi */
    struct kv *kv;

    struct buffer *x;                        /* (n, hidden): the residual stream */
    struct buffer *h;                        /* (n, hidden): its normed copy */
    struct buffer *q, *k, *v, *a;            /* (n, q_width), (n, kv_width) x2, (n, q_width) */
    struct buffer *gate, *up;                /* (n, intermediate) */
    struct buffer *e;                        /* (n, embed_dim) where that is not hidden */
    struct buffer *head_x, *head_e, *logits; /* (max_logit_rows, hidden | embed_dim | vocab) */

    size_t work_bytes; /* of these buffers */

    int n_tokens; /* of the batch */
    model_tap *tap;
    void *tap_arg;
    float *tap_x; /* (max_batch_tokens, widest input) */
};

static int make_positions(struct model *m, struct error *err) {
    const struct model_config *c = m->weights.config;
    if (m->weights.arch->positions == POSITIONS_ROPE) {
        m->inv_freq = malloc((size_t)c->head_dim * sizeof *m->inv_freq);
        if (!m->inv_freq) return error_set(err, -ENOMEM, "model: out of memory");
        positions_rope(m->inv_freq, c);
    }
    if (m->weights.arch->positions == POSITIONS_ALIBI) {
        m->slopes = malloc((size_t)c->n_heads * sizeof *m->slopes);
        if (!m->slopes) return error_set(err, -ENOMEM, "model: out of memory");
        positions_alibi(m->slopes, c->n_heads);
    }
    return 0;
}

static int make_buffers(struct model *m, struct error *err) {
    const struct model_config *c = m->weights.config;
    size_t n = (size_t)m->options.max_batch_tokens, rows = (size_t)m->options.max_logit_rows;
    size_t hidden = (size_t)c->hidden, wide = (size_t)c->intermediate;
    size_t embed = c->embed_dim != c->hidden ? (size_t)c->embed_dim : 0;
    size_t gate = m->weights.arch->ffn == FFN_GATED_SILU ? wide : 0;
    const struct {
        struct buffer **buffer;
        size_t size;
    } want[] = {
        {&m->x, n * hidden},
        {&m->h, n * hidden},
        {&m->q, n * (size_t)m->q_width},
        {&m->k, n * (size_t)m->kv_width},
        {&m->v, n * (size_t)m->kv_width},
        {&m->a, n * (size_t)m->q_width},
        {&m->gate, n * gate},
        {&m->up, n * wide},
        {&m->e, n * embed},
        {&m->head_x, rows * hidden},
        {&m->head_e, rows * embed},
        {&m->logits, rows * (size_t)c->vocab},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        if (!want[i].size) continue;
        int r = backend_buffer_new(m->be, want[i].buffer, want[i].size, err);
        if (r < 0) return r;
        m->work_bytes += want[i].size * sizeof(float);
    }
    return 0;
}

static int make_kv(struct model *m, struct error *err) {
    const struct model_config *c = m->weights.config;
    if (!m->options.n_kv_blocks) return 0;
    struct kv_spec spec = {
        /* Block by block, one layer's keys are alive at a time. */
        .n_layers = m->options.layers_on_demand ? 1 : c->n_layers,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .n_blocks = m->options.n_kv_blocks,
        .type = m->options.kv_type,
    };
    return backend_kv_new(m->be, &m->kv, &spec, err);
}

/* Taps serve whoever runs block by block; their copy of an input is as wide as the widest. */
static int make_tap(struct model *m, struct error *err) {
    if (!m->options.layers_on_demand) return 0;
    const struct model_config *c = m->weights.config;
    int width = c->hidden;
    if (width < c->intermediate) width = c->intermediate;
    if (width < m->q_width) width = m->q_width;
    m->tap_x = malloc((size_t)m->options.max_batch_tokens * (size_t)width * sizeof(float));
    return m->tap_x ? 0 : error_set(err, -ENOMEM, "model: out of memory");
}

int model_open(struct model **ret, struct backend *be, struct source *src,
               const struct model_options *options, struct error *err) {
    struct model *m = calloc(1, sizeof *m);
    if (!m) return error_set(err, -ENOMEM, "model: out of memory");
    m->be = be;
    m->options = *options;
    int r = model_weights_open(&m->weights, be, src, options, err);
    if (r < 0) goto fail;
    const struct model_config *c = m->weights.config;
    m->q_width = c->n_heads * c->head_dim;
    m->kv_width = c->n_kv_heads * c->head_dim;
    r = make_positions(m, err);
    if (r < 0) goto fail;
    r = make_buffers(m, err);
    if (r < 0) goto fail;
    r = make_kv(m, err);
    if (r < 0) goto fail;
    r = make_tap(m, err);
    if (r < 0) goto fail;
    *ret = m;
    return 0;
fail:
    model_close(m);
    return r;
}

void model_close(struct model *m) {
    if (!m) return;
    struct buffer *buffers[] = {m->x,    m->h,  m->q, m->k,      m->v,      m->a,
                                m->gate, m->up, m->e, m->head_x, m->head_e, m->logits};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        backend_buffer_free(m->be, buffers[i]);
    backend_kv_free(m->be, m->kv);
    model_weights_close(&m->weights);
    free(m->inv_freq);
    free(m->slopes);
    free(m->tap_x);
    free(m);
}

const struct model_config *model_get_config(const struct model *m) { return m->weights.config; }

int model_make_kv(struct model *m, int n_blocks, struct error *err) {
    m->options.n_kv_blocks = n_blocks;
    return make_kv(m, err);
}

size_t model_work_bytes(const struct model *m) { return m->work_bytes; }

size_t model_weight_bytes(const struct model *m) { return model_weights_bytes(&m->weights); }

size_t model_decode_bytes(const struct model *m) {
    size_t tables = backend_weight_bytes(m->be, m->weights.embed);
    if (m->weights.embed_positions)
        tables += backend_weight_bytes(m->be, m->weights.embed_positions);
    return m->weights.bytes - tables;
}

size_t model_kv_block_bytes(const struct model_config *c, enum dtype kv_type) {
    return (size_t)c->n_layers * 2 * (size_t)c->n_kv_heads * kv_plane_bytes(kv_type, c->head_dim);
}

size_t model_kv_bytes(const struct model *m) {
    size_t all = model_kv_block_bytes(m->weights.config, m->options.kv_type) *
                 (size_t)m->options.n_kv_blocks;
    return m->options.layers_on_demand ? all / (size_t)m->weights.config->n_layers : all;
}

static void norm(struct model *m, struct buffer *dst, const struct buffer *src,
                 const struct model_norm *w) {
    struct norm_call call = {
        .w = w->w, .b = w->b, .dim = w->dim, .eps = m->weights.config->norm_eps};
    backend_norm(m->be, dst, src, &call);
}

static void show_tap(struct model *m, int layer, enum model_role role, const struct buffer *x,
                     int width) {
    if (!m->tap) return;
    /* A device that fails shows it again when the state is read. */
    if (backend_buffer_read(m->be, m->tap_x, x, 0, (size_t)m->n_tokens * (size_t)width, NULL) < 0)
        return;
    m->tap(m->tap_arg, layer, role, m->tap_x, m->n_tokens, width);
}

static void attention(struct model *m, int layer, const struct model_layer *w,
                      const struct buffer *in) {
    const struct model_config *c = m->weights.config;
    struct buffer *dst[] = {m->q, m->k, m->v};
    struct linear_call calls[3];
    for (int i = 0; i < 3; i++)
        calls[i] = (struct linear_call){
            .dst = dst[i], .w = w->linear[ROLE_Q + i], .bias = w->bias[ROLE_Q + i]};
    show_tap(m, layer, ROLE_Q, in, c->hidden);
    backend_linear(m->be, calls, 3, in);

    if (m->inv_freq) {
        struct rope_call rope = {.x = m->q,
                                 .n_heads = c->n_heads,
                                 .head_dim = c->head_dim,
                                 .inv_freq = m->inv_freq,
                                 .n_freq = c->head_dim / 2,
                                 .scale = 1};
        backend_rope(m->be, &rope);
        rope.x = m->k;
        rope.n_heads = c->n_kv_heads;
        backend_rope(m->be, &rope);
    }
    int kv_layer = m->options.layers_on_demand ? 0 : layer;
    backend_kv_store(m->be, m->kv, kv_layer, m->k, m->v);
    struct attention_call call = {.dst = m->a,
                                  .q = m->q,
                                  .kv = m->kv,
                                  .layer = kv_layer,
                                  .n_heads = c->n_heads,
                                  .window = 0,
                                  .scale = (float)(1 / sqrt((double)c->head_dim)),
                                  .slopes = m->slopes};
    backend_attention(m->be, &call);
    show_tap(m, layer, ROLE_O, m->a, m->q_width);
    struct linear_call out = {
        .dst = m->x, .w = w->linear[ROLE_O], .bias = w->bias[ROLE_O], .accumulate = true};
    backend_linear(m->be, &out, 1, m->a);
}

static void feed_forward(struct model *m, int layer, const struct model_layer *w,
                         const struct buffer *in) {
    const struct model_config *c = m->weights.config;
    show_tap(m, layer, ROLE_UP, in, c->hidden);
    if (m->gate) {
        struct linear_call calls[] = {
            {.dst = m->gate, .w = w->linear[ROLE_GATE], .bias = w->bias[ROLE_GATE]},
            {.dst = m->up, .w = w->linear[ROLE_UP], .bias = w->bias[ROLE_UP]},
        };
        backend_linear(m->be, calls, 2, in);
        backend_gate(m->be, m->gate, m->up, c->intermediate);
    } else {
        struct linear_call call = {
            .dst = m->up, .w = w->linear[ROLE_UP], .bias = w->bias[ROLE_UP], .act = c->activation};
        backend_linear(m->be, &call, 1, in);
    }
    struct buffer *wide = m->gate ? m->gate : m->up;
    show_tap(m, layer, ROLE_DOWN, wide, c->intermediate);
    struct linear_call down = {
        .dst = m->x, .w = w->linear[ROLE_DOWN], .bias = w->bias[ROLE_DOWN], .accumulate = true};
    backend_linear(m->be, &down, 1, wide);
}

void model_layer(struct model *m, int layer) {
    const struct model_config *c = m->weights.config;
    const struct model_layer *w = &m->weights.layers[layer];
    if (c->post_norm) { /* opt-350m: the norm follows the sum */
        attention(m, layer, w, m->x);
        norm(m, m->x, m->x, &w->attn_norm);
        feed_forward(m, layer, w, m->x);
        norm(m, m->x, m->x, &w->ffn_norm);
        return;
    }
    /* BLOOM may add to the normed stream instead of the raw one: then both are x. */
    struct buffer *h = c->residual_after_norm ? m->x : m->h;
    norm(m, h, m->x, &w->attn_norm);
    attention(m, layer, w, h);
    norm(m, h, m->x, &w->ffn_norm);
    feed_forward(m, layer, w, h);
}

void model_begin(struct model *m, const struct batch *batch) {
    m->n_tokens = batch->n_tokens;
    backend_begin(m->be, batch);
}

void model_embed(struct model *m) {
    const struct model_weights *w = &m->weights;
    struct buffer *e = m->e ? m->e : m->x;
    backend_embed(m->be, e, w->embed, false, 0, 1, false);
    if (m->e) {
        struct linear_call in = {.dst = m->x, .w = w->project_in};
        backend_linear(m->be, &in, 1, m->e);
    }
    if (w->embed_positions)
        backend_embed(m->be, m->x, w->embed_positions, true, w->config->position_offset, 1, true);
    if (w->embed_norm.w) norm(m, m->x, m->x, &w->embed_norm);
}

void model_forward(struct model *m, const struct batch *batch) {
    model_begin(m, batch);
    model_embed(m);
    for (int i = 0; i < m->weights.config->n_layers; i++) model_layer(m, i);
}

/* The rows' state after the last norm, where the output matrix reads it. */
static struct buffer *head_input(struct model *m, const int32_t *rows, int n_rows) {
    const struct model_weights *w = &m->weights;
    backend_gather(m->be, m->head_x, m->x, rows, n_rows, w->config->hidden);
    if (w->final_norm.w) norm(m, m->head_x, m->head_x, &w->final_norm);
    if (!m->e) return m->head_x;
    struct linear_call out = {.dst = m->head_e, .w = w->project_out};
    backend_linear(m->be, &out, 1, m->head_x);
    return m->head_e;
}

static void queue_logits(struct model *m, const int32_t *rows, int n_rows) {
    struct buffer *in = head_input(m, rows, n_rows);
    struct linear_call head = {.dst = m->logits, .w = m->weights.head};
    backend_linear(m->be, &head, 1, in);
}

bool model_can_choose(const struct model *m) { return m->be->ops->best != NULL; }

int model_best(struct model *m, int32_t *ids, const int32_t *rows, int n_rows, struct error *err) {
    queue_logits(m, rows, n_rows);
    return backend_best(m->be, ids, m->logits, n_rows, m->weights.config->vocab, err);
}

bool model_can_shorten(const struct model *m) { return m->be->ops->top != NULL; }

int model_top(struct model *m, struct top_call *call, const int32_t *rows, struct error *err) {
    queue_logits(m, rows, call->n_rows);
    call->x = m->logits;
    call->width = m->weights.config->vocab;
    return backend_top(m->be, call, err);
}

int model_columns(struct model *m, float *logits, int row, int first, int n, struct error *err) {
    size_t at = (size_t)row * (size_t)m->weights.config->vocab + (size_t)first;
    return backend_buffer_read(m->be, logits, m->logits, at, (size_t)n, err);
}

/* Results in short need the most memory, where there are any; of a rehearsal they mean nothing. */
static int rehearse_short(struct model *m, const int32_t *rows, int n_rows, struct error *err) {
    size_t n = (size_t)n_rows, spans = (size_t)backend_spans(m->weights.config->vocab);
    uint64_t *results = malloc(n * (BACKEND_TOP + spans) * sizeof *results);
    float *heats = malloc(n * sizeof *heats);
    struct top_call call = {.n_rows = n_rows, .temperatures = heats, .ranks = results};
    int r = results && heats ? 0 : error_set(err, -ENOMEM, "model: out of memory");
    for (size_t i = 0; i < n && r == 0; i++) heats[i] = 1;
    if (r == 0) {
        call.sums = results + n * BACKEND_TOP;
        r = model_top(m, &call, rows, err);
    }
    free(results);
    free(heats);
    return r;
}

/* The last position of the context, n times over. */
static int rehearse_step(struct model *m, struct batch *batch, int n_tokens, int32_t *ids,
                         struct error *err) {
    int r = 0, rows = n_tokens < m->options.max_logit_rows ? n_tokens : m->options.max_logit_rows;
    batch->n_tokens = n_tokens;
    model_forward(m, batch);
    if (model_can_choose(m)) r = model_best(m, ids, batch->seqs, rows, err);
    if (r == 0 && model_can_shorten(m)) r = rehearse_short(m, batch->seqs, rows, err);
    if (r < 0 || model_can_choose(m)) return r;
    queue_logits(m, batch->seqs, rows);
    return backend_sync(m->be, err);
}

/* What a step needs may depend on how many tokens it has in other ways than growing with them:
 * every power of two is tried. A pool of one block will do, nothing being computed. */
static int rehearse(struct model *m, struct batch *batch, int32_t *ids, struct error *err) {
    int r = model_make_kv(m, 1, err);
    if (r < 0) return r;
    backend_rehearse(m->be, true);
    r = rehearse_step(m, batch, m->options.max_batch_tokens, ids, err);
    for (int n = 1; n < m->options.max_batch_tokens && r == 0; n *= 2)
        r = rehearse_step(m, batch, n, ids, err);
    backend_rehearse(m->be, false);
    backend_kv_free(m->be, m->kv);
    m->kv = NULL;
    m->options.n_kv_blocks = 0;
    return r;
}

int model_reserve(struct model *m, int n_seqs, int context, struct error *err) {
    size_t n = (size_t)m->options.max_batch_tokens, seqs = (size_t)n_seqs;
    size_t blocks = ((size_t)context + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK;
    if (!m->be->ops->rehearse) return 0;
    int32_t *zeros = calloc(n > seqs * blocks ? n : seqs * blocks, sizeof *zeros);
    int32_t *positions = malloc(n * sizeof *positions);
    int32_t *ids = malloc(n * sizeof *ids);
    int r = zeros && positions && ids ? 0 : error_set(err, -ENOMEM, "model: out of memory");
    for (size_t i = 0; i < n && positions; i++) positions[i] = context - 1;
    struct batch batch = {.tokens = zeros,
                          .positions = positions,
                          .seqs = zeros,
                          .blocks = zeros,
                          .n_seqs = n_seqs,
                          .max_blocks = (int)blocks};
    if (r == 0) r = rehearse(m, &batch, ids, err);
    free(zeros);
    free(positions);
    free(ids);
    return r;
}

int model_logits(struct model *m, float *logits, const int32_t *rows, int n_rows,
                 struct error *err) {
    size_t vocab = (size_t)m->weights.config->vocab;
    for (int done = 0; done < n_rows;) {
        int n = n_rows - done;
        if (n > m->options.max_logit_rows) n = m->options.max_logit_rows;
        queue_logits(m, rows + done, n);
        int r = backend_buffer_read(m->be, logits + (size_t)done * vocab, m->logits, 0,
                                    (size_t)n * vocab, err);
        if (r < 0) return r;
        done += n;
    }
    return 0;
}

int model_hidden(struct model *m, float *hidden, const int32_t *rows, int n_rows,
                 struct error *err) {
    size_t width = (size_t)m->weights.config->embed_dim;
    for (int done = 0; done < n_rows;) {
        int n = n_rows - done;
        if (n > m->options.max_logit_rows) n = m->options.max_logit_rows;
        struct buffer *in = head_input(m, rows + done, n);
        int r = backend_buffer_read(m->be, hidden + (size_t)done * width, in, 0, (size_t)n * width,
                                    err);
        if (r < 0) return r;
        done += n;
    }
    return 0;
}

void model_set_tap(struct model *m, model_tap *tap, void *arg) {
    m->tap = m->tap_x ? tap : NULL;
    m->tap_arg = arg;
}

int model_load_layer(struct model *m, int layer, struct error *err) {
    return model_weights_load_layer(&m->weights, layer, err);
}

void model_drop_layer(struct model *m, int layer) { model_weights_drop_layer(&m->weights, layer); }

int model_read_state(struct model *m, float *x, struct error *err) {
    return backend_buffer_read(m->be, x, m->x, 0,
                               (size_t)m->n_tokens * (size_t)m->weights.config->hidden, err);
}

void model_write_state(struct model *m, const float *x) {
    backend_buffer_write(m->be, m->x, 0, x,
                         (size_t)m->n_tokens * (size_t)m->weights.config->hidden);
}

bool model_linear_shape(const struct model *m, enum model_role role, int *ret_rows, int *ret_cols) {
    return model_weights_shape(&m->weights, role, ret_rows, ret_cols);
}

int model_read_linear(struct model *m, int layer, enum model_role role, float *w,
                      struct error *err) {
    return model_weights_read(&m->weights, layer, role, w, err);
}

int model_replace_linear(struct model *m, int layer, enum model_role role,
                         const struct weight_view *view, struct error *err) {
    return model_weights_replace(&m->weights, layer, role, view, err);
}

void model_linear_name(const struct model *m, int layer, enum model_role role, char *name,
                       size_t size) {
    model_weights_name(&m->weights, layer, role, name, size);
}

void model_output_name(const struct model *m, char *name, size_t size) {
    model_weights_output_name(&m->weights, name, size);
}

int model_vector_size(const struct model *m, enum model_vector v) {
    return model_weights_vector_size(&m->weights, v);
}

int model_read_vector(struct model *m, int layer, enum model_vector v, float *values,
                      struct error *err) {
    return model_weights_read_vector(&m->weights, layer, v, values, err);
}

int model_replace_vector(struct model *m, int layer, enum model_vector v, const float *values,
                         struct error *err) {
    return model_weights_replace_vector(&m->weights, layer, v, values, err);
}

void model_vector_name(const struct model *m, int layer, enum model_vector v, char *name,
                       size_t size) {
    model_weights_vector_name(&m->weights, layer, v, name, size);
}
