#include "engine/train/params.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model_weights.h"
#include "engine/source.h"
#include "kernels/error.h"

enum { NAME_SIZE = 192 };

struct params {
    struct model_weights names;
};

int params_open(struct params **ret, struct source *src, struct error *err) {
    struct params *p = calloc(1, sizeof *p);
    if (!p) return error_set(err, -ENOMEM, "weights: out of memory");
    int r = model_weights_names(&p->names, src, err);
    if (r < 0)
        free(p);
    else
        *ret = p;
    return r;
}

void params_close(struct params *p) { free(p); }

void params_linear_name(const struct params *p, int layer, enum model_role role, char *name,
                        size_t size) {
    model_weights_name(&p->names, layer, role, name, size);
}

static const char *norm_pattern(const struct params *p, enum block_norm norm) {
    return norm == BLOCK_ATTN_NORM ? p->names.arch->attn_norm : p->names.arch->ffn_norm;
}

void params_norm_name(const struct params *p, int layer, enum block_norm norm, const char *suffix,
                      char *name, size_t size) {
    model_weights_tensor_name(&p->names, norm_pattern(p, norm), layer, suffix, name, size);
}

void params_final_norm_name(const struct params *p, const char *suffix, char *name, size_t size) {
    model_weights_tensor_name(&p->names, p->names.arch->final_norm, 0, suffix, name, size);
}

static int allocate(float **ret, size_t n, struct error *err) {
    *ret = malloc(n * sizeof **ret);
    return *ret ? 0 : error_set(err, -ENOMEM, "weights: out of memory");
}

/* A whole tensor in rows of cols: NAME.weight, or NAME.bcq where that is coded. */
static int read_tensor(float **ret, struct params *p, const char *name, int rows, int cols,
                       struct error *err) {
    struct source_tensor t;
    int found = source_find(p->names.src, name, &t);
    size_t n = strlen(name), end = sizeof ".weight" - 1;
    if (found < 0 && n > end && n < NAME_SIZE && !strcmp(name + n - end, ".weight")) {
        char coded[NAME_SIZE];
        snprintf(coded, sizeof coded, "%.*s.bcq", (int)(n - end), name);
        found = source_find(p->names.src, coded, &t);
    }
    if (found < 0) return error_set(err, -EBADMSG, "tensor '%s' is missing", name);
    if (t.rows != rows || t.cols != cols)
        return error_set(err, -EBADMSG, "tensor '%s': shape [%lld, %lld], the model needs [%d, %d]",
                         name, (long long)t.rows, (long long)t.cols, rows, cols);
    int r = allocate(ret, (size_t)rows * (size_t)cols, err);
    if (r == 0) r = source_read_rows(p->names.src, &t, 0, rows, *ret, err);
    source_release(p->names.src, &t);
    return r;
}

static int read_named(float **ret, struct params *p, const char *pattern, int layer,
                      const char *suffix, int rows, int cols, struct error *err) {
    char name[NAME_SIZE];
    model_weights_tensor_name(&p->names, pattern, layer, suffix, name, sizeof name);
    return read_tensor(ret, p, name, rows, cols, err);
}

static bool has_named(const struct params *p, const char *pattern, int layer, const char *suffix) {
    char name[NAME_SIZE];
    struct source_tensor t;
    model_weights_tensor_name(&p->names, pattern, layer, suffix, name, sizeof name);
    return source_find(p->names.src, name, &t) == 0;
}

static int read_norm(float **w, float **b, struct params *p, const char *pattern, int layer,
                     struct error *err) {
    int dim = p->names.config->hidden;
    int r = read_named(w, p, pattern, layer, ".weight", 1, dim, err);
    if (r < 0 || p->names.arch->norm == NORM_RMS) return r;
    return read_named(b, p, pattern, layer, ".bias", 1, dim, err);
}

/* The rows of one role out of the bias of a fused matrix, ordered (head, q|k|v, head_dim). */
static int read_fused_bias(float **ret, struct params *p, int layer, enum model_role role, int rows,
                           struct error *err) {
    size_t dim = (size_t)p->names.config->head_dim, heads = (size_t)rows / dim;
    float *all = NULL;
    int r = read_named(&all, p, p->names.arch->fused_qkv, layer, ".bias", 1, 3 * rows, err);
    if (r == 0) r = allocate(ret, (size_t)rows, err);
    for (size_t head = 0; r == 0 && head < heads; head++)
        memcpy(*ret + head * dim, all + (3 * head + (size_t)role) * dim, dim * sizeof **ret);
    free(all);
    return r;
}

static int read_matrix(float **ret, struct params *p, int layer, enum model_role role, int rows,
                       int cols, struct error *err) {
    const char *pattern = p->names.arch->linear[role];
    if (has_named(p, pattern, layer, ".bcq"))
        return read_named(ret, p, pattern, layer, ".bcq", rows, cols, err);
    int r = allocate(ret, (size_t)rows * (size_t)cols, err);
    return r == 0 ? model_weights_read(&p->names, layer, role, *ret, err) : r;
}

static int read_linear(struct params_block *b, struct params *p, int layer, enum model_role role,
                       bool leave_coded, struct error *err) {
    int rows, cols, r = 0;
    if (!model_weights_shape(&p->names, role, &rows, &cols)) return 0;
    const char *pattern = p->names.arch->linear[role];
    if (!leave_coded || !has_named(p, pattern, layer, ".bcq"))
        r = read_matrix(&b->linear[role], p, layer, role, rows, cols, err);
    if (r < 0) return r;
    bool own = has_named(p, pattern, layer, ".bias"); /* a changed part counts before the whole */
    if (p->names.arch->fused_qkv && role <= ROLE_V && !own)
        return read_fused_bias(&b->bias[role], p, layer, role, rows, err);
    if (!own) return 0;
    return read_named(&b->bias[role], p, pattern, layer, ".bias", 1, rows, err);
}

static int read_block(struct params_block *ret, struct params *p, int layer, bool leave_coded,
                      struct error *err) {
    struct params_block b = {0};
    int r = 0;
    for (int i = 0; r == 0 && i < BLOCK_NORMS; i++)
        r = read_norm(&b.norm_w[i], &b.norm_b[i], p, norm_pattern(p, (enum block_norm)i), layer,
                      err);
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
        r = read_linear(&b, p, layer, (enum model_role)role, leave_coded, err);
    if (r < 0)
        params_block_free(&b);
    else
        *ret = b;
    return r;
}

int params_block_read(struct params_block *ret, struct params *p, int layer, struct error *err) {
    return read_block(ret, p, layer, false, err);
}

int params_block_read_rest(struct params_block *ret, struct params *p, int layer,
                           struct error *err) {
    return read_block(ret, p, layer, true, err);
}

void params_block_free(struct params_block *b) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        free(b->linear[role]);
        free(b->bias[role]);
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        free(b->norm_w[i]);
        free(b->norm_b[i]);
    }
    *b = (struct params_block){0};
}

struct block_weights params_block_view(const struct params_block *b) {
    struct block_weights w = {0};
    for (int role = 0; role < ROLE_COUNT; role++) {
        w.linear[role] = b->linear[role];
        w.bias[role] = b->bias[role];
    }
    for (int i = 0; i < BLOCK_NORMS; i++) {
        w.norm_w[i] = b->norm_w[i];
        w.norm_b[i] = b->norm_b[i];
    }
    return w;
}

static int read_head(struct params_ends *e, struct params *p, struct error *err) {
    const struct model_config *c = p->names.config;
    if (c->tie_embeddings) {
        e->head = e->embed;
        return 0;
    }
    char name[NAME_SIZE] = "";
    strncat(name, p->names.arch->head, sizeof name - 16);
    strcat(name, ".weight");
    return read_tensor(&e->head, p, name, c->vocab, c->embed_dim, err);
}

int params_ends_read(struct params_ends *ret, struct params *p, struct error *err) {
    const struct model_config *c = p->names.config;
    const struct arch_row *a = p->names.arch;
    struct params_ends e = {0};
    int r = read_named(&e.embed, p, a->embed, 0, ".weight", c->vocab, c->embed_dim, err);
    if (r == 0 && a->positions == POSITIONS_LEARNED)
        r = read_named(&e.positions, p, a->embed_positions, 0, ".weight",
                       c->max_positions + c->position_offset, c->hidden, err);
    if (r == 0 && a->embed_norm)
        r = read_norm(&e.embed_norm_w, &e.embed_norm_b, p, a->embed_norm, 0, err);
    if (r == 0 && c->embed_dim != c->hidden)
        r = read_named(&e.project_in, p, a->project_in, 0, ".weight", c->hidden, c->embed_dim, err);
    if (r == 0 && c->embed_dim != c->hidden)
        r = read_named(&e.project_out, p, a->project_out, 0, ".weight", c->embed_dim, c->hidden,
                       err);
    if (r == 0 && c->final_norm)
        r = read_norm(&e.final_norm_w, &e.final_norm_b, p, a->final_norm, 0, err);
    if (r == 0) r = read_head(&e, p, err);
    if (r < 0)
        params_ends_free(&e);
    else
        *ret = e;
    return r;
}

void params_ends_free(struct params_ends *e) {
    if (e->head != e->embed) free(e->head);
    float *const all[] = {e->embed,      e->positions,    e->embed_norm_w, e->embed_norm_b,
                          e->project_in, e->final_norm_w, e->final_norm_b, e->project_out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    *e = (struct params_ends){0};
}
