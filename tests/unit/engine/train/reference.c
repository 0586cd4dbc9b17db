#include "tests/unit/engine/train/reference.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct model_config reference_family(int i, const char **ret_name) {
    static const char *const names[REFERENCE_FAMILIES] = {"llama",
                                                          "llama gqa bias",
                                                          "opt relu",
                                                          "opt post-norm",
                                                          "bloom gelu",
                                                          "bloom after norm, 6 heads",
                                                          "opt gelu, residual"};
    struct model_config c = {.arch = i < 2             ? ARCH_LLAMA
                                     : i < 4 || i == 6 ? ARCH_OPT
                                                       : ARCH_BLOOM,
                             .hidden = 12,
                             .n_layers = 1,
                             .n_heads = 3,
                             .n_kv_heads = 3,
                             .head_dim = 4,
                             .intermediate = 10,
                             .vocab = 16,
                             .max_positions = 64,
                             .embed_dim = 12,
                             .norm_eps = 1e-5f,
                             .rope = {.theta = 100.0},
                             .activation = ACT_NONE};
    if (i == 1) {
        c.n_heads = 4;
        c.n_kv_heads = 2;
        c.head_dim = 6;
        c.attention_bias = c.mlp_bias = true;
    }
    if (i == 2 || i == 3) c.activation = ACT_RELU;
    if (i >= 4) c.activation = ACT_GELU_TANH;
    c.post_norm = i == 3;
    c.residual_after_norm = i == 5;
    if (i == 5) {
        c.n_heads = c.n_kv_heads = 6;
        c.head_dim = 2;
    }
    *ret_name = names[i];
    return c;
}

static unsigned next(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Within +-scale, on a grid that fp32 holds. */
static double draw(unsigned *state, double scale) {
    return scale * ((double)(next(state) % 2049) / 1024.0 - 1.0);
}

static int take(int *n, int count) {
    int at = *n;
    *n += count;
    return at;
}

static void lay_out(struct reference *ref) {
    const struct model_config *c = &ref->config;
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, wide = c->intermediate;
    const int rows[] = {q, kv, kv, c->hidden, wide, wide, c->hidden};
    const int cols[] = {c->hidden, c->hidden, c->hidden, q, c->hidden, c->hidden, wide};
    bool llama = c->arch == ARCH_LLAMA, has_bias = !llama || c->attention_bias;
    for (int role = 0; role < ROLE_COUNT; role++) {
        bool has = llama || role != ROLE_GATE;
        ref->rows[role] = rows[role];
        ref->cols[role] = cols[role];
        ref->linear[role] = has ? take(&ref->n_params, rows[role] * cols[role]) : -1;
        ref->bias[role] = has && has_bias ? take(&ref->n_params, rows[role]) : -1;
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        ref->norm_w[i] = take(&ref->n_params, c->hidden);
        ref->norm_b[i] = llama ? -1 : take(&ref->n_params, c->hidden);
    }
}

struct reference *reference_new(const struct model_config *config, int n_seqs, int ctx,
                                unsigned seed) {
    struct reference *ref = calloc(1, sizeof *ref);
    cr_assert_not_null(ref);
    ref->config = *config;
    ref->n_seqs = n_seqs;
    ref->ctx = ctx;
    ref->n_x = n_seqs * ctx * config->hidden;
    lay_out(ref);
    ref->params = malloc((size_t)ref->n_params * sizeof *ref->params);
    ref->narrow = malloc((size_t)ref->n_params * sizeof *ref->narrow);
    cr_assert(ref->params && ref->narrow);
    for (int i = 0; i < ref->n_params; i++) ref->params[i] = draw(&seed, 0.5);
    for (int i = 0; i < BLOCK_NORMS; i++)
        for (int k = 0; k < config->hidden; k++) ref->params[ref->norm_w[i] + k] += 1.0;
    for (int i = 0; i < ref->n_params; i++) ref->narrow[i] = (float)ref->params[i];
    return ref;
}

void reference_free(struct reference *ref) {
    free(ref->params);
    free(ref->narrow);
    free(ref);
}

struct block_weights reference_weights(const struct reference *ref) {
    struct block_weights w = {0};
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (ref->linear[role] >= 0) w.linear[role] = ref->narrow + ref->linear[role];
        if (ref->bias[role] >= 0) w.bias[role] = ref->narrow + ref->bias[role];
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        w.norm_w[i] = ref->narrow + ref->norm_w[i];
        if (ref->norm_b[i] >= 0) w.norm_b[i] = ref->narrow + ref->norm_b[i];
    }
    return w;
}

struct block_grads reference_grads(const struct reference *ref, float *grads) {
    struct block_grads g = {0};
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (ref->linear[role] >= 0) g.linear[role] = grads + ref->linear[role];
        if (ref->bias[role] >= 0) g.bias[role] = grads + ref->bias[role];
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        g.norm_w[i] = grads + ref->norm_w[i];
        if (ref->norm_b[i] >= 0) g.norm_b[i] = grads + ref->norm_b[i];
    }
    return g;
}

static void norm(const struct reference *ref, int which, const double *x, double *y) {
    int dim = ref->config.hidden;
    const double *w = ref->params + ref->norm_w[which];
    const double *b = ref->norm_b[which] >= 0 ? ref->params + ref->norm_b[which] : NULL;
    for (int t = 0; t < ref->n_seqs * ref->ctx; t++, x += dim, y += dim) {
        double mean = 0.0, squares = 0.0;
        for (int i = 0; b && i < dim; i++) mean += x[i] / dim;
        for (int i = 0; i < dim; i++) squares += (x[i] - mean) * (x[i] - mean) / dim;
        for (int i = 0; i < dim; i++) {
            y[i] = (x[i] - mean) / sqrt(squares + (double)ref->config.norm_eps) * w[i];
            if (b) y[i] += b[i];
        }
    }
}

static void linear(const struct reference *ref, enum model_role role, const double *x, double *y) {
    int rows = ref->rows[role], cols = ref->cols[role];
    const double *w = ref->params + ref->linear[role];
    for (int t = 0; t < ref->n_seqs * ref->ctx; t++) {
        for (int r = 0; r < rows; r++) {
            double sum = ref->bias[role] >= 0 ? ref->params[ref->bias[role] + r] : 0.0;
            for (int k = 0; k < cols; k++) sum += w[r * cols + k] * x[t * cols + k];
            y[t * rows + r] = sum;
        }
    }
}

static void turn(const struct reference *ref, double *x, int n_heads) {
    int dim = ref->config.head_dim, half = dim / 2;
    for (int t = 0; t < ref->n_seqs * ref->ctx; t++) {
        for (int h = 0; h < n_heads; h++) {
            double *head = x + (t * n_heads + h) * dim;
            for (int i = 0; i < half; i++) {
                double angle = (t % ref->ctx) * pow(ref->config.rope.theta, -2.0 * i / dim);
                double a = head[i], b = head[i + half];
                head[i] = a * cos(angle) - b * sin(angle);
                head[i + half] = b * cos(angle) + a * sin(angle);
            }
        }
    }
}

/* 2^(-8 (h + 1) / n) for a power of two n; heads past it take odd members of the next power's. */
static double slope(int head, int n_heads) {
    int base = 1;
    while (2 * base <= n_heads) base *= 2;
    if (head < base) return pow(2.0, -8.0 * (head + 1) / base);
    return pow(2.0, -8.0 * (2 * (head - base) + 1) / (2 * base));
}

static void attend(const struct reference *ref, const double *q, const double *k, const double *v,
                   double *out) {
    const struct model_config *c = &ref->config;
    int dim = c->head_dim, q_width = c->n_heads * dim, kv_width = c->n_kv_heads * dim;
    double p[64];
    for (int t = 0; t < ref->n_seqs * ref->ctx; t++) {
        int first = t / ref->ctx * ref->ctx;
        for (int h = 0; h < c->n_heads; h++) {
            int kv = h / (c->n_heads / c->n_kv_heads);
            double total = 0.0;
            for (int s = first; s <= t; s++) {
                double dot = 0.0;
                for (int d = 0; d < dim; d++)
                    dot += q[t * q_width + h * dim + d] * k[s * kv_width + kv * dim + d];
                dot /= sqrt(dim);
                if (c->arch == ARCH_BLOOM) dot -= slope(h, c->n_heads) * (t - s);
                p[s - first] = exp(dot);
                total += p[s - first];
            }
            for (int d = 0; d < dim; d++) {
                double sum = 0.0;
                for (int s = first; s <= t; s++)
                    sum += p[s - first] / total * v[s * kv_width + kv * dim + d];
                out[t * q_width + h * dim + d] = sum;
            }
        }
    }
}

static double activated(enum activation act, double x) {
    if (act == ACT_RELU) return x > 0.0 ? x : 0.0;
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

/* (n, widest) scratch arrays. */
enum { ROOM = 8192 };
struct room {
    double in[ROOM], q[ROOM], k[ROOM], v[ROOM], a[ROOM], o[ROOM], sum[ROOM], gate[ROOM], up[ROOM];
};

static void feed_forward(const struct reference *ref, struct room *m, const double *in,
                         double *out) {
    int n = ref->n_seqs * ref->ctx * ref->config.intermediate;
    linear(ref, ROLE_UP, in, m->up);
    if (ref->linear[ROLE_GATE] >= 0) {
        linear(ref, ROLE_GATE, in, m->gate);
        for (int i = 0; i < n; i++) m->up[i] *= m->gate[i] / (1.0 + exp(-m->gate[i]));
    } else {
        for (int i = 0; i < n; i++) m->up[i] = activated(ref->config.activation, m->up[i]);
    }
    linear(ref, ROLE_DOWN, m->up, out);
}

static void attention(const struct reference *ref, struct room *m, const double *in, double *out) {
    linear(ref, ROLE_Q, in, m->q);
    linear(ref, ROLE_K, in, m->k);
    linear(ref, ROLE_V, in, m->v);
    if (ref->config.arch == ARCH_LLAMA) {
        turn(ref, m->q, ref->config.n_heads);
        turn(ref, m->k, ref->config.n_kv_heads);
    }
    attend(ref, m->q, m->k, m->v, m->a);
    linear(ref, ROLE_O, m->a, out);
}

static void add(const struct reference *ref, double *dst, const double *src) {
    for (int i = 0; i < ref->n_x; i++) dst[i] += src[i];
}

void reference_forward(const struct reference *ref, const double *x, double *y) {
    static struct room m;
    size_t bytes = (size_t)ref->n_x * sizeof *x;
    bool post = ref->config.post_norm, after = ref->config.residual_after_norm;
    for (int role = 0; role < ROLE_COUNT; role++)
        cr_assert_leq(ref->n_seqs * ref->ctx * ref->rows[role], ROOM);
    memcpy(m.in, x, bytes);
    if (!post) norm(ref, BLOCK_ATTN_NORM, x, m.in);
    attention(ref, &m, m.in, m.sum);
    add(ref, m.sum, after ? m.in : x);
    norm(ref, post ? BLOCK_ATTN_NORM : BLOCK_FFN_NORM, m.sum, m.in);
    feed_forward(ref, &m, m.in, m.o);
    add(ref, m.o, post || after ? m.in : m.sum);
    if (post)
        norm(ref, BLOCK_FFN_NORM, m.o, y);
    else
        memcpy(y, m.o, bytes);
}
