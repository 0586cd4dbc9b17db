#include "engine/model_weights.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/source.h"
#include "kernels/error.h"

enum { NAME_SIZE = 192 };

/* What a tensor must be: rows 1 and dims 1 for a vector. */
struct want {
    enum weight_use use;
    int rows, cols;
    bool optional;
    enum weight_split split;
};

enum weight_split model_weights_split(enum model_role role) {
    return role == ROLE_O || role == ROLE_DOWN ? SPLIT_INPUTS : SPLIT_ROWS;
}

/* name = prefix + pattern (its "%d" filled with layer) + suffix. The table holds the patterns. */
static void name_of(const struct model_weights *w, char *name, const char *pattern, int layer,
                    const char *suffix) {
    char base[NAME_SIZE / 2];
    const char *hole = strstr(pattern, "%d");
    if (hole)
        snprintf(base, sizeof base, "%.*s%d%s", (int)(hole - pattern), pattern, layer, hole + 2);
    else
        snprintf(base, sizeof base, "%s", pattern);
    snprintf(name, NAME_SIZE, "%s%s%s", w->prefix, base, suffix);
}

void model_weights_tensor_name(const struct model_weights *w, const char *pattern, int layer,
                               const char *suffix, char *name, size_t size) {
    char full[NAME_SIZE];
    name_of(w, full, pattern, layer, suffix);
    snprintf(name, size, "%s", full);
}

static int check_shape(const struct source_tensor *t, const char *name, const struct want *want,
                       struct error *err) {
    bool vector = want->use == WEIGHT_VECTOR;
    bool same = vector ? t->n_dims == 1 && t->shape[0] == (uint64_t)want->cols
                       : t->n_dims == 2 && t->shape[0] == (uint64_t)want->rows &&
                             t->shape[1] == (uint64_t)want->cols;
    if (same) return 0;
    if (t->n_dims == 2)
        return error_set(err, -EBADMSG, "tensor '%s': shape [%llu, %llu], the model needs [%d, %d]",
                         name, (unsigned long long)t->shape[0], (unsigned long long)t->shape[1],
                         want->rows, want->cols);
    return error_set(err, -EBADMSG, "tensor '%s': %d dimensions, the model needs %s of %d x %d",
                     name, t->n_dims, vector ? "a vector" : "a matrix", want->rows, want->cols);
}

static int count(struct model_weights *w, const struct weight *weight,
                 const struct source_tensor *t, struct error *err) {
    w->bytes += backend_weight_bytes(w->be, weight);
    w->read += (size_t)t->n_bytes;
    source_release(w->src, t);
    /* One that serves twice, as table and as output matrix, is read twice. */
    size_t read = w->read < w->total ? w->read : w->total;
    if (w->progress && !w->progress(w->progress_arg, read, w->total, w->bytes))
        return error_set(err, -ECANCELED, "model: loading was stopped");
    return 0;
}

/* Packs a tensor that the source does not hold in a type that back ends read: widened first. */
static int add_widened(struct model_weights *w, struct weight **ret, const struct want *want,
                       const struct source_tensor *t, struct error *err) {
    size_t n = (size_t)want->rows * (size_t)want->cols;
    float *wide = malloc(n * sizeof *wide);
    if (!wide) return error_set(err, -ENOMEM, "model: out of memory widening '%s'", t->name);
    int r = source_read_rows(w->src, t, 0, want->rows, wide, err);
    struct weight_view view = {.type = DTYPE_F32,
                               .rows = want->rows,
                               .cols = want->cols,
                               .split = want->split,
                               .data = wide};
    if (r == 0) r = backend_weight_new(w->be, ret, want->use, &view, err);
    free(wide);
    return r;
}

static int add_tensor(struct model_weights *w, struct weight **ret, const struct want *want,
                      const struct source_tensor *t, struct error *err) {
    int r;
    enum dtype type;
    if (source_dense_type(t, &type)) {
        struct weight_view view = {.type = type,
                                   .rows = want->rows,
                                   .cols = want->cols,
                                   .split = want->split,
                                   .data = t->data};
        r = backend_weight_new(w->be, ret, want->use, &view, err);
    } else {
        r = add_widened(w, ret, want, t, err);
    }
    if (r == 0) r = count(w, *ret, t, err);
    return r;
}

static int load(struct model_weights *w, struct weight **ret, const char *pattern, int layer,
                const char *suffix, const struct want *want, struct error *err) {
    char name[NAME_SIZE];
    name_of(w, name, pattern, layer, suffix);
    struct source_tensor t;
    if (source_find(w->src, name, &t) < 0) {
        if (want->optional) return 0;
        return error_set(err, -EBADMSG, "tensor '%s' is missing", name);
    }
    if (t.is_bcq)
        return error_set(err, -EBADMSG, "tensor '%s': binary-coded, a dense one is needed", name);
    int r = check_shape(&t, name, want, err);
    return r < 0 ? r : add_tensor(w, ret, want, &t, err);
}

/* The embedding or the output matrix, which may be of whole numbers. */
static int load_end(struct model_weights *w, struct weight **ret, const char *pattern,
                    const struct want *want, struct error *err) {
    char name[NAME_SIZE];
    struct source_tensor t;
    name_of(w, name, pattern, 0, ".bcq");
    if (source_find(w->src, name, &t) < 0) return load(w, ret, pattern, 0, ".weight", want, err);
    const struct bcq_spec *spec = &t.bcq.spec;
    if (spec->kind != BCQ_WHOLE)
        return error_set(err, -EBADMSG, "tensor '%s': kind %d, whole numbers (kind %d) are needed",
                         name, (int)spec->kind, (int)BCQ_WHOLE);
    if (t.outliers || t.rotation)
        return error_set(err, -EBADMSG, "tensor '%s': has outliers or rotations beside it", name);
    int r = check_shape(&t, name, want, err);
    if (r < 0) return r;
    struct weight_view view = {
        .is_bcq = 1, .bcq = t.bcq, .rows = want->rows, .cols = want->cols, .split = want->split};
    r = backend_weight_new(w->be, ret, want->use, &view, err);
    if (r < 0) return error_prefix(err, r, "tensor '%s'", name);
    return count(w, *ret, &t, err);
}

static int load_norm(struct model_weights *w, struct model_norm *norm, const char *pattern,
                     int layer, struct error *err) {
    norm->dim = w->config->hidden;
    struct want want = {.use = WEIGHT_VECTOR, .rows = 1, .cols = norm->dim};
    int r = load(w, &norm->w, pattern, layer, ".weight", &want, err);
    if (r < 0 || w->arch->norm == NORM_RMS) return r;
    return load(w, &norm->b, pattern, layer, ".bias", &want, err);
}

bool model_weights_shape(const struct model_weights *w, enum model_role role, int *ret_rows,
                         int *ret_cols) {
    const struct model_config *c = w->config;
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    const int shapes[ROLE_COUNT][2] = {
        [ROLE_Q] = {q, c->hidden},
        [ROLE_K] = {kv, c->hidden},
        [ROLE_V] = {kv, c->hidden},
        [ROLE_O] = {c->hidden, q},
        [ROLE_GATE] = {c->intermediate, c->hidden},
        [ROLE_UP] = {c->intermediate, c->hidden},
        [ROLE_DOWN] = {c->hidden, c->intermediate},
    };
    if (!w->arch->linear[role]) return false;
    *ret_rows = shapes[role][0];
    *ret_cols = shapes[role][1];
    return true;
}

void model_weights_name(const struct model_weights *w, int layer, enum model_role role, char *name,
                        size_t size) {
    char full[NAME_SIZE];
    name_of(w, full, w->arch->linear[role], layer, "");
    snprintf(name, size, "%s", full);
}

static bool is_fused(const struct model_weights *w, enum model_role role) {
    return w->arch->fused_qkv && role <= ROLE_V;
}

/* Rows of one role out of a fused matrix or bias: for each head, head_dim rows of Q, then of K,
 * then of V. dst: (n_heads * head_dim, cols). */
static int read_fused(struct model_weights *w, const struct source_tensor *t, enum model_role role,
                      int cols, float *dst, struct error *err) {
    int dim = w->config->head_dim;
    for (int head = 0; head < w->config->n_heads; head++) {
        int row = (3 * head + (int)role) * dim;
        int r = source_read_rows(w->src, t, row, dim,
                                 dst + (size_t)head * (size_t)dim * (size_t)cols, err);
        if (r < 0) return r;
    }
    return 0;
}

static int find_fused(struct model_weights *w, int layer, const char *suffix, int cols,
                      struct source_tensor *t, struct error *err) {
    char name[NAME_SIZE];
    name_of(w, name, w->arch->fused_qkv, layer, suffix);
    if (source_find(w->src, name, t) < 0)
        return error_set(err, -EBADMSG, "tensor '%s' is missing", name);
    int rows = 3 * w->config->n_heads * w->config->head_dim;
    struct want want = {.use = cols ? WEIGHT_LINEAR : WEIGHT_VECTOR,
                        .rows = cols ? rows : 1,
                        .cols = cols ? cols : rows};
    return check_shape(t, name, &want, err);
}

int model_weights_read_fused_bias(struct model_weights *w, int layer, enum model_role role,
                                  float *dst, struct error *err) {
    struct source_tensor t;
    int rows, cols, r = find_fused(w, layer, ".bias", 0, &t, err);
    if (r < 0) return r;
    model_weights_shape(w, role, &rows, &cols);
    size_t dim = (size_t)w->config->head_dim;
    float *all = malloc((size_t)3 * (size_t)rows * sizeof *all);
    if (!all) return error_set(err, -ENOMEM, "model: out of memory");
    r = source_read_rows(w->src, &t, 0, 1, all, err);
    for (size_t head = 0; r == 0 && head < (size_t)w->config->n_heads; head++)
        memcpy(dst + head * dim, all + (3 * head + (size_t)role) * dim, dim * sizeof *all);
    free(all);
    return r;
}

/* A checkpoint may hold the part under its own name, where the quantizer has changed it. */
static int load_fused_bias(struct model_weights *w, int layer, enum model_role role, int rows,
                           struct error *err) {
    enum model_vector v = (enum model_vector)(VECTOR_BIAS + (int)role);
    float *part = malloc((size_t)rows * sizeof *part);
    if (!part) return error_set(err, -ENOMEM, "model: out of memory");
    int r = model_weights_read_vector(w, layer, v, part, err);
    if (r == 0) r = model_weights_replace_vector(w, layer, v, part, err);
    free(part);
    return r;
}

static int load_coded(struct model_weights *w, int layer, enum model_role role, const char *name,
                      const struct source_tensor *t, struct error *err) {
    int rows, cols;
    model_weights_shape(w, role, &rows, &cols);
    const struct bcq_spec *spec = &t->bcq.spec;
    if (spec->rows != rows || spec->cols != cols)
        return error_set(err, -EBADMSG, "tensor '%s': codes of [%d, %d], the model needs [%d, %d]",
                         name, spec->rows, spec->cols, rows, cols);
    struct weight_view view = {.is_bcq = 1,
                               .bcq = t->bcq,
                               .act_bits = w->act_bits,
                               .rows = rows,
                               .cols = cols,
                               .split = model_weights_split(role),
                               .outliers = t->outliers,
                               .rotation = t->rotation};
    struct weight **ret = &w->layers[layer].linear[role];
    int r = backend_weight_new(w->be, ret, WEIGHT_LINEAR, &view, err);
    if (r < 0) return error_prefix(err, r, "tensor '%s'", name);
    if (t->outliers) w->read += t->outliers->total;
    if (t->rotation) w->read += t->rotation->total;
    return count(w, *ret, t, err);
}

static int load_dense_part(struct model_weights *w, int layer, enum model_role role,
                           struct error *err) {
    int rows, cols;
    model_weights_shape(w, role, &rows, &cols);
    float *part = malloc((size_t)rows * (size_t)cols * sizeof *part);
    if (!part) return error_set(err, -ENOMEM, "model: out of memory");
    int r = model_weights_read(w, layer, role, part, err);
    struct weight_view view = {.type = DTYPE_F32,
                               .rows = rows,
                               .cols = cols,
                               .split = model_weights_split(role),
                               .data = part};
    struct weight **ret = &w->layers[layer].linear[role];
    if (r == 0) r = backend_weight_new(w->be, ret, WEIGHT_LINEAR, &view, err);
    if (r == 0) w->bytes += backend_weight_bytes(w->be, *ret);
    free(part);
    return r;
}

static int load_linear(struct model_weights *w, int layer, enum model_role role,
                       struct error *err) {
    int rows, cols, r;
    if (!model_weights_shape(w, role, &rows, &cols)) return 0;
    struct model_layer *l = &w->layers[layer];
    char name[NAME_SIZE];
    name_of(w, name, w->arch->linear[role], layer, ".bcq");
    struct source_tensor t;
    struct want matrix = {
        .use = WEIGHT_LINEAR, .rows = rows, .cols = cols, .split = model_weights_split(role)};
    if (source_find(w->src, name, &t) == 0)
        r = load_coded(w, layer, role, name, &t, err);
    else if (is_fused(w, role))
        r = load_dense_part(w, layer, role, err);
    else
        r = load(w, &l->linear[role], w->arch->linear[role], layer, ".weight", &matrix, err);
    if (r < 0) return r;
    if (is_fused(w, role)) return load_fused_bias(w, layer, role, rows, err);
    struct want vector = {.use = WEIGHT_VECTOR,
                          .rows = 1,
                          .cols = rows,
                          .optional = true,
                          .split = model_weights_split(role)};
    return load(w, &l->bias[role], w->arch->linear[role], layer, ".bias", &vector, err);
}

int model_weights_load_layer(struct model_weights *w, int layer, struct error *err) {
    struct model_layer *l = &w->layers[layer];
    int r = load_norm(w, &l->attn_norm, w->arch->attn_norm, layer, err);
    if (r == 0) r = load_norm(w, &l->ffn_norm, w->arch->ffn_norm, layer, err);
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
        r = load_linear(w, layer, (enum model_role)role, err);
    if (r < 0) model_weights_drop_layer(w, layer);
    return r;
}

static void free_norm(struct model_weights *w, struct model_norm *norm) {
    backend_weight_free(w->be, norm->w);
    backend_weight_free(w->be, norm->b);
    *norm = (struct model_norm){0};
}

void model_weights_drop_layer(struct model_weights *w, int layer) {
    struct model_layer *l = &w->layers[layer];
    free_norm(w, &l->attn_norm);
    free_norm(w, &l->ffn_norm);
    for (int role = 0; role < ROLE_COUNT; role++) {
        backend_weight_free(w->be, l->linear[role]);
        backend_weight_free(w->be, l->bias[role]);
    }
    *l = (struct model_layer){0};
}

static int load_embedding(struct model_weights *w, struct error *err) {
    const struct model_config *c = w->config;
    const struct arch_row *a = w->arch;
    struct want table = {.use = WEIGHT_TABLE, .rows = c->vocab, .cols = c->embed_dim};
    int r = load_end(w, &w->embed, a->embed, &table, err);
    if (r == 0 && a->positions == POSITIONS_LEARNED) {
        table.rows = c->max_positions + c->position_offset;
        table.cols = c->hidden;
        r = load(w, &w->embed_positions, a->embed_positions, 0, ".weight", &table, err);
    }
    if (r == 0 && a->embed_norm) r = load_norm(w, &w->embed_norm, a->embed_norm, 0, err);
    return r;
}

/* The output matrix keeps its own name without the prefix; tied ones are the embedding. */
static int load_head(struct model_weights *w, struct error *err) {
    const struct model_config *c = w->config;
    struct want want = {
        .use = WEIGHT_LINEAR, .rows = c->vocab, .cols = c->embed_dim, .split = SPLIT_ROWS};
    if (c->tie_embeddings) return load_end(w, &w->head, w->arch->embed, &want, err);
    const char *prefix = w->prefix;
    w->prefix = "";
    int r = load_end(w, &w->head, w->arch->head, &want, err);
    w->prefix = prefix;
    return r;
}

void model_weights_output_name(const struct model_weights *w, char *name, size_t size) {
    if (w->config->tie_embeddings)
        model_weights_tensor_name(w, w->arch->embed, 0, "", name, size);
    else
        snprintf(name, size, "%s", w->arch->head);
}

static int load_ends(struct model_weights *w, struct error *err) {
    const struct model_config *c = w->config;
    int r = load_embedding(w, err);
    if (r < 0) return r;
    if (c->embed_dim != c->hidden) {
        struct want in = {.use = WEIGHT_LINEAR, .rows = c->hidden, .cols = c->embed_dim};
        struct want out = {.use = WEIGHT_LINEAR, .rows = c->embed_dim, .cols = c->hidden};
        r = load(w, &w->project_in, w->arch->project_in, 0, ".weight", &in, err);
        if (r == 0) r = load(w, &w->project_out, w->arch->project_out, 0, ".weight", &out, err);
        if (r < 0) return r;
    }
    if (c->final_norm) r = load_norm(w, &w->final_norm, w->arch->final_norm, 0, err);
    return r < 0 ? r : load_head(w, err);
}

static int find_prefix(struct model_weights *w, struct error *err) {
    for (const char *const *p = w->arch->prefixes; *p; p++) {
        char name[NAME_SIZE];
        struct source_tensor t;
        w->prefix = *p;
        name_of(w, name, w->arch->embed, 0, ".weight");
        if (source_find(w->src, name, &t) == 0) return 0;
        name_of(w, name, w->arch->embed, 0, ".bcq");
        if (source_find(w->src, name, &t) == 0) return 0;
    }
    return error_set(err, -EBADMSG, "tensor '%s%s.weight' is missing", w->arch->prefixes[0],
                     w->arch->embed);
}

int model_weights_names(struct model_weights *w, struct source *src, struct error *err) {
    *w = (struct model_weights){.src = src, .config = source_config(src)};
    w->arch = model_arch_find(w->config->arch);
    if (!w->arch) return error_set(err, -ENOTSUP, "model: no forward pass for this architecture");
    return find_prefix(w, err);
}

int model_weights_open(struct model_weights *w, struct backend *be, struct source *src,
                       const struct model_options *options, struct error *err) {
    *w = (struct model_weights){.be = be,
                                .src = src,
                                .config = source_config(src),
                                .total = source_bytes(src),
                                .progress = options->progress,
                                .progress_arg = options->progress_arg};
    if (options->act_bits && !w->config->quantization.method[0])
        return error_set(err, -EINVAL,
                         "act-bits: the model has no binary-coded matrices, whose "
                         "inputs it is about");
    w->act_bits = options->act_bits ? options->act_bits : w->config->quantization.act_bits;
    w->arch = model_arch_find(w->config->arch);
    if (!w->arch) return error_set(err, -ENOTSUP, "model: no forward pass for this architecture");
    w->layers = calloc((size_t)w->config->n_layers, sizeof *w->layers);
    if (!w->layers) return error_set(err, -ENOMEM, "model: out of memory");
    int r = find_prefix(w, err);
    if (r == 0) r = load_ends(w, err);
    for (int i = 0; r == 0 && !options->layers_on_demand && i < w->config->n_layers; i++)
        r = model_weights_load_layer(w, i, err);
    return r;
}

void model_weights_close(struct model_weights *w) {
    for (int i = 0; w->layers && i < w->config->n_layers; i++) model_weights_drop_layer(w, i);
    free(w->layers);
    struct weight *single[] = {w->embed, w->embed_positions, w->project_in, w->project_out,
                               w->head};
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        backend_weight_free(w->be, single[i]);
    if (w->be) {
        free_norm(w, &w->embed_norm);
        free_norm(w, &w->final_norm);
    }
    *w = (struct model_weights){0};
}

size_t model_weights_bytes(const struct model_weights *w) { return w->bytes; }

int model_weights_read(struct model_weights *w, int layer, enum model_role role, float *dst,
                       struct error *err) {
    int rows, cols;
    if (!model_weights_shape(w, role, &rows, &cols))
        return error_set(err, -EINVAL, "model: a block has no such layer");
    struct source_tensor t;
    if (is_fused(w, role)) {
        int r = find_fused(w, layer, ".weight", cols, &t, err);
        return r < 0 ? r : read_fused(w, &t, role, cols, dst, err);
    }
    char name[NAME_SIZE];
    name_of(w, name, w->arch->linear[role], layer, ".weight");
    if (source_find(w->src, name, &t) < 0)
        return error_set(err, -EBADMSG, "tensor '%s' is missing", name);
    struct want want = {.use = WEIGHT_LINEAR, .rows = rows, .cols = cols};
    int r = check_shape(&t, name, &want, err);
    return r < 0 ? r : source_read_rows(w->src, &t, 0, rows, dst, err);
}

int model_weights_replace(struct model_weights *w, int layer, enum model_role role,
                          const struct weight_view *view, struct error *err) {
    struct weight *packed;
    struct weight_view split = *view;
    split.split = model_weights_split(role);
    int r = backend_weight_new(w->be, &packed, WEIGHT_LINEAR, &split, err);
    if (r < 0) return r;
    backend_weight_free(w->be, w->layers[layer].linear[role]);
    w->layers[layer].linear[role] = packed;
    return 0;
}
