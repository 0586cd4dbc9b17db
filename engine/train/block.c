#include "engine/train/block.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model_arch.h"
#include "engine/quant/linalg.h"
#include "engine/quant/parallel.h"
#include "engine/train/activation.h"
#include "engine/train/attention.h"
#include "engine/train/gemm.h"
#include "engine/train/norm.h"
#include "kernels/error.h"

enum { MAX_TOKENS = 1 << 20, BIAS_ROWS = 64, BIAS_COLS = 64 };

/* Names of what a cache keeps; widths in cache_width(). The sums are before the norms of post_norm. */
enum kept {
    KEPT_X,    /* what entered */
    KEPT_SUM1, /* after attention's residual */
    KEPT_SUM2, /* after the feed-forward part's, post_norm only */
    KEPT_Q,    /* turned */
    KEPT_K,
    KEPT_V,
    KEPT_A, /* attention's output */
    KEPT_LSE,
    KEPT_GATE, /* gated blocks only */
    KEPT_UP,   /* before the activation */
    KEPT_COUNT
};

struct block_cache {
    int n_seqs, ctx;
    float *memory;
    float *kept[KEPT_COUNT];
};

struct block {
    struct model_config config;
    const struct arch_row *arch;
    int n_seqs, ctx, n_threads;
    int q_width, kv_width;
    struct attention *attention;
    struct block_cache *own;     /* where no cache is given */
    float *memory;               /* of the following */
    float *in;                   /* (n, hidden) input of a layer: normed, or what is kept already */
    float *wide, *dwide, *dgate; /* (n, intermediate) */
    float *dq, *dk, *dv;         /* (n, q_width), (n, kv_width) x2 */
    float *da;                   /* (n, q_width) */
    float *d1, *d2;              /* (n, hidden) */
    float *stats;                /* (n, 2) */
};

static bool is_gated(const struct block *b) { return b->arch->ffn == FFN_GATED_SILU; }

void block_shape(const struct block *b, enum model_role role, int *ret_rows, int *ret_cols) {
    int hidden = b->config.hidden, wide = b->config.intermediate;
    const int shapes[ROLE_COUNT][2] = {
        [ROLE_Q] = {b->q_width, hidden},  [ROLE_K] = {b->kv_width, hidden},
        [ROLE_V] = {b->kv_width, hidden}, [ROLE_O] = {hidden, b->q_width},
        [ROLE_GATE] = {wide, hidden},     [ROLE_UP] = {wide, hidden},
        [ROLE_DOWN] = {hidden, wide},
    };
    bool has = b->arch->linear[role];
    *ret_rows = has ? shapes[role][0] : 0;
    *ret_cols = has ? shapes[role][1] : 0;
}

static size_t cache_width(const struct block *b, enum kept kept) {
    size_t hidden = (size_t)b->config.hidden, wide = (size_t)b->config.intermediate;
    switch (kept) {
    case KEPT_X:
    case KEPT_SUM1:
        return hidden;
    case KEPT_SUM2:
        return b->config.post_norm ? hidden : 0;
    case KEPT_Q:
    case KEPT_A:
        return (size_t)b->q_width;
    case KEPT_K:
    case KEPT_V:
        return (size_t)b->kv_width;
    case KEPT_LSE:
        return (size_t)b->config.n_heads;
    case KEPT_GATE:
        return is_gated(b) ? wide : 0;
    default:
        return wide;
    }
}

static size_t max_tokens(const struct block *b) { return (size_t)b->n_seqs * (size_t)b->ctx; }

size_t block_cache_bytes(const struct block *b) {
    size_t width = 0;
    for (int i = 0; i < KEPT_COUNT; i++) width += cache_width(b, (enum kept)i);
    return max_tokens(b) * width * sizeof(float);
}

int block_cache_new(struct block_cache **ret, const struct block *b, struct error *err) {
    struct block_cache *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, -ENOMEM, "block: out of memory");
    c->memory = malloc(block_cache_bytes(b));
    if (!c->memory) {
        free(c);
        return error_set(err, -ENOMEM, "block: out of memory");
    }
    float *at = c->memory;
    for (int i = 0; i < KEPT_COUNT; i++) {
        size_t width = cache_width(b, (enum kept)i);
        c->kept[i] = width ? at : NULL;
        at += width * max_tokens(b);
    }
    *ret = c;
    return 0;
}

void block_cache_free(struct block_cache *c) {
    if (!c) return;
    free(c->memory);
    free(c);
}

static int make_room(struct block *b, struct error *err) {
    size_t n = max_tokens(b), hidden = (size_t)b->config.hidden;
    size_t wide = (size_t)b->config.intermediate, q = (size_t)b->q_width, kv = (size_t)b->kv_width;
    const struct {
        float **at;
        size_t width;
    } rooms[] = {{&b->in, hidden}, {&b->wide, wide}, {&b->dwide, wide}, {&b->dgate, wide},
                 {&b->dq, q},      {&b->dk, kv},     {&b->dv, kv},      {&b->da, q},
                 {&b->d1, hidden}, {&b->d2, hidden}, {&b->stats, 2}};
    size_t width = 0;
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) width += rooms[i].width;
    b->memory = malloc(n * width * sizeof *b->memory);
    if (!b->memory) return error_set(err, -ENOMEM, "block: out of memory");
    float *at = b->memory;
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) {
        *rooms[i].at = at;
        at += n * rooms[i].width;
    }
    return block_cache_new(&b->own, b, err);
}

int block_new(struct block **ret, const struct model_config *config, int n_seqs, int ctx,
              int n_threads, struct error *err) {
    if (n_seqs < 1 || ctx < 1 || ctx > config->max_positions || n_seqs > MAX_TOKENS / ctx)
        return error_set(err, -EINVAL, "block: %d windows of %d tokens are not in 1..%d of 1..%d",
                         n_seqs, ctx, MAX_TOKENS, config->max_positions);
    struct block *b = calloc(1, sizeof *b);
    if (!b) return error_set(err, -ENOMEM, "block: out of memory");
    linalg_init();
    b->config = *config;
    b->arch = model_arch_find(config->arch);
    b->n_seqs = n_seqs;
    b->ctx = ctx;
    b->n_threads = parallel_threads(n_threads);
    b->q_width = config->n_heads * config->head_dim;
    b->kv_width = config->n_kv_heads * config->head_dim;
    int r = make_room(b, err);
    if (r == 0) r = attention_new(&b->attention, config, n_seqs, ctx, b->n_threads, err);
    if (r < 0)
        block_free(b);
    else
        *ret = b;
    return r;
}

void block_free(struct block *b) {
    if (!b) return;
    attention_free(b->attention);
    block_cache_free(b->own);
    free(b->memory);
    free(b);
}

/* -- Linear layers --------------------------------------------------------------------------- */

struct bias_work {
    const float *bias, *dy;
    float *y, *sums;
    int n, rows;
};

static void add_bias_rows(void *arg, size_t piece) {
    const struct bias_work *k = arg;
    size_t first = piece * BIAS_ROWS, width = (size_t)k->rows;
    for (size_t t = first; t < first + BIAS_ROWS && t < (size_t)k->n; t++)
        for (size_t i = 0; i < width; i++) k->y[t * width + i] += k->bias[i];
}

static void sum_bias_columns(void *arg, size_t piece) {
    const struct bias_work *k = arg;
    size_t first = piece * BIAS_COLS, width = (size_t)k->rows;
    size_t n = width - first < BIAS_COLS ? width - first : BIAS_COLS;
    double sums[BIAS_COLS] = {0};
    for (size_t t = 0; t < (size_t)k->n; t++)
        for (size_t i = 0; i < n; i++) sums[i] += (double)k->dy[t * width + first + i];
    for (size_t i = 0; i < n; i++) k->sums[first + i] += (float)sums[i];
}

/* y = W x + bias + beta y. */
static void apply(const struct block *b, const struct block_weights *w, enum model_role role,
                  const float *x, float *y, int n, float beta) {
    int rows, cols;
    block_shape(b, role, &rows, &cols);
    gemm(GEMM_NT, n, rows, cols, x, w->linear[role], beta, y, b->n_threads);
    if (!w->bias[role]) return;
    struct bias_work k = {.bias = w->bias[role], .y = y, .n = n, .rows = rows};
    parallel_for(b->n_threads, ((size_t)n + BIAS_ROWS - 1) / BIAS_ROWS, add_bias_rows, &k);
}

/* dx = W^T dy + beta dx, and what is asked of the layer's own gradients. */
static void apply_back(const struct block *b, const struct block_weights *w, enum model_role role,
                       const float *x, const float *dy, float *dx, int n, float beta,
                       const struct block_grads *grads) {
    int rows, cols;
    block_shape(b, role, &rows, &cols);
    if (grads && grads->see) grads->see(grads->arg, role, x, dy, n, rows, cols);
    if (grads && grads->linear[role])
        gemm(GEMM_TN, rows, cols, n, dy, x, 1.0f, grads->linear[role], b->n_threads);
    if (grads && grads->bias[role]) {
        struct bias_work k = {.dy = dy, .sums = grads->bias[role], .n = n, .rows = rows};
        parallel_for(b->n_threads, ((size_t)rows + BIAS_COLS - 1) / BIAS_COLS, sum_bias_columns,
                     &k);
    }
    gemm(GEMM_NN, n, cols, rows, dy, w->linear[role], beta, dx, b->n_threads);
}

/* -- Forward --------------------------------------------------------------------------------- */

static struct norm_rows norm_of(const struct block *b, const struct block_weights *w,
                                enum block_norm norm, int n) {
    return (struct norm_rows){.w = w->norm_w[norm],
                              .b = w->norm_b[norm],
                              .n = n,
                              .dim = b->config.hidden,
                              .eps = b->config.norm_eps,
                              .n_threads = b->n_threads};
}

static void copy_state(const struct block *b, float *dst, const float *src, int n) {
    if (dst != src) memmove(dst, src, (size_t)n * (size_t)b->config.hidden * sizeof *dst);
}

/* What the attention (feed-forward) part reads: the stream, normed where the norm comes first. */
static const float *attention_input(const struct block *b, const struct block_weights *w,
                                    const struct block_cache *c, int n) {
    if (b->config.post_norm) return c->kept[KEPT_X];
    struct norm_rows norm = norm_of(b, w, BLOCK_ATTN_NORM, n);
    norm_forward(&norm, c->kept[KEPT_X], b->in);
    return b->in;
}

static const float *ffn_input(const struct block *b, const struct block_weights *w,
                              const struct block_cache *c, int n) {
    enum block_norm which = b->config.post_norm ? BLOCK_ATTN_NORM : BLOCK_FFN_NORM;
    struct norm_rows norm = norm_of(b, w, which, n);
    norm_forward(&norm, c->kept[KEPT_SUM1], b->in);
    return b->in;
}

static void forward_attention(const struct block *b, const struct block_weights *w,
                              const struct block_cache *c, int n) {
    const float *in = attention_input(b, w, c, n);
    float *const *k = c->kept;
    apply(b, w, ROLE_Q, in, k[KEPT_Q], n, 0.0f);
    apply(b, w, ROLE_K, in, k[KEPT_K], n, 0.0f);
    apply(b, w, ROLE_V, in, k[KEPT_V], n, 0.0f);
    attention_rotate(b->attention, k[KEPT_Q], k[KEPT_K], c->n_seqs, c->ctx, 0);
    attention_forward(b->attention, k[KEPT_Q], k[KEPT_K], k[KEPT_V], c->n_seqs, c->ctx, k[KEPT_A],
                      k[KEPT_LSE]);
    copy_state(b, k[KEPT_SUM1], b->config.residual_after_norm ? in : k[KEPT_X], n);
    apply(b, w, ROLE_O, k[KEPT_A], k[KEPT_SUM1], n, 1.0f);
}

/* The input of the last layer, into wide. */
static void activate(const struct block *b, const struct block_cache *c, int n) {
    size_t count = (size_t)n * (size_t)b->config.intermediate;
    if (is_gated(b))
        activation_gate(c->kept[KEPT_GATE], c->kept[KEPT_UP], b->wide, count, b->n_threads);
    else
        activation_plain(b->config.activation, c->kept[KEPT_UP], b->wide, count, b->n_threads);
}

const float *block_input(const struct block *b, const struct block_weights *w,
                         const struct block_cache *c, enum model_role role) {
    int n = c->n_seqs * c->ctx;
    if (role <= ROLE_V) return attention_input(b, w, c, n);
    if (role == ROLE_O) return c->kept[KEPT_A];
    if (role != ROLE_DOWN) return ffn_input(b, w, c, n);
    activate(b, c, n);
    return b->wide;
}

static void forward_ffn(const struct block *b, const struct block_weights *w,
                        const struct block_cache *c, float *y, int n) {
    const float *in = ffn_input(b, w, c, n);
    bool normed = b->config.post_norm || b->config.residual_after_norm;
    if (is_gated(b)) apply(b, w, ROLE_GATE, in, c->kept[KEPT_GATE], n, 0.0f);
    apply(b, w, ROLE_UP, in, c->kept[KEPT_UP], n, 0.0f);
    activate(b, c, n);
    float *sum = b->config.post_norm ? c->kept[KEPT_SUM2] : y;
    copy_state(b, sum, normed ? in : c->kept[KEPT_SUM1], n);
    apply(b, w, ROLE_DOWN, b->wide, sum, n, 1.0f);
    if (!b->config.post_norm) return;
    struct norm_rows norm = norm_of(b, w, BLOCK_FFN_NORM, n);
    norm_forward(&norm, sum, y);
}

void block_forward(struct block *b, const struct block_weights *w, const float *x, float *y,
                   int n_seqs, int ctx, struct block_cache *cache) {
    struct block_cache *c = cache ? cache : b->own;
    int n = n_seqs * ctx;
    c->n_seqs = n_seqs;
    c->ctx = ctx;
    copy_state(b, c->kept[KEPT_X], x, n);
    forward_attention(b, w, c, n);
    forward_ffn(b, w, c, y, n);
}

/* -- Backward -------------------------------------------------------------------------------- */

static void norm_back(const struct block *b, const struct block_weights *w, enum block_norm which,
                      const float *x, const float *dy, const float *base, float *dx, int n,
                      const struct block_grads *grads) {
    struct norm_rows norm = norm_of(b, w, which, n);
    norm_backward(&norm, x, dy, base, dx, grads ? grads->norm_w[which] : NULL,
                  grads ? grads->norm_b[which] : NULL, b->stats);
}

static void add_state(const struct block *b, float *dst, const float *src, int n) {
    size_t count = (size_t)n * (size_t)b->config.hidden;
    for (size_t i = 0; i < count; i++) dst[i] += src[i];
}

/* From dsum, the gradient at the sum after the part, to din at the part's input. */
static void backward_ffn(const struct block *b, const struct block_weights *w,
                         const struct block_cache *c, const float *dsum, float *din, int n,
                         const struct block_grads *grads) {
    size_t count = (size_t)n * (size_t)b->config.intermediate;
    float *const *k = c->kept, *dup = b->wide; /* free once its own gradient is known */
    activate(b, c, n);
    apply_back(b, w, ROLE_DOWN, b->wide, dsum, b->dwide, n, 0.0f, grads);
    const float *in = ffn_input(b, w, c, n);
    if (is_gated(b))
        activation_gate_backward(k[KEPT_GATE], k[KEPT_UP], b->dwide, b->dgate, dup, count,
                                 b->n_threads);
    else
        activation_plain_backward(b->config.activation, k[KEPT_UP], b->dwide, dup, count,
                                  b->n_threads);
    apply_back(b, w, ROLE_UP, in, dup, din, n, 0.0f, grads);
    if (is_gated(b)) apply_back(b, w, ROLE_GATE, in, b->dgate, din, n, 1.0f, grads);
}

static void backward_attention(const struct block *b, const struct block_weights *w,
                               const struct block_cache *c, const float *dsum, float *din, int n,
                               const struct block_grads *grads) {
    float *const *k = c->kept;
    apply_back(b, w, ROLE_O, k[KEPT_A], dsum, b->da, n, 0.0f, grads);
    struct attention_kept kept = {
        .q = k[KEPT_Q], .k = k[KEPT_K], .v = k[KEPT_V], .out = k[KEPT_A], .lse = k[KEPT_LSE]};
    attention_backward(b->attention, &kept, b->da, c->n_seqs, c->ctx, b->dq, b->dk, b->dv);
    attention_rotate(b->attention, b->dq, b->dk, c->n_seqs, c->ctx, 1);
    const float *in = attention_input(b, w, c, n);
    apply_back(b, w, ROLE_V, in, b->dv, din, n, 0.0f, grads);
    apply_back(b, w, ROLE_K, in, b->dk, din, n, 1.0f, grads);
    apply_back(b, w, ROLE_Q, in, b->dq, din, n, 1.0f, grads);
}

/* d1 is the gradient at the last sum written so far, d2 at the input of a part; the letters are
 * those of README.md. */
void block_backward(struct block *b, const struct block_weights *w, const struct block_cache *c,
                    const float *dy, float *dx, const struct block_grads *grads) {
    int n = c->n_seqs * c->ctx;
    bool post = b->config.post_norm, after = b->config.residual_after_norm;
    if (post)
        norm_back(b, w, BLOCK_FFN_NORM, c->kept[KEPT_SUM2], dy, NULL, b->d1, n, grads);
    else
        copy_state(b, b->d1, dy, n);
    backward_ffn(b, w, c, b->d1, b->d2, n, grads);
    if (post || after) add_state(b, b->d2, b->d1, n);
    norm_back(b, w, post ? BLOCK_ATTN_NORM : BLOCK_FFN_NORM, c->kept[KEPT_SUM1], b->d2,
              post || after ? NULL : b->d1, b->d1, n, grads);
    backward_attention(b, w, c, b->d1, b->d2, n, grads);
    if (post || after) add_state(b, b->d2, b->d1, n);
    if (post)
        copy_state(b, dx, b->d2, n);
    else
        norm_back(b, w, BLOCK_ATTN_NORM, c->kept[KEPT_X], b->d2, after ? NULL : b->d1, dx, n,
                  grads);
}
