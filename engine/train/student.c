#include "engine/train/student.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/source.h"
#include "engine/train/coded.h"
#include "engine/train/gemm.h"
#include "kernels/error.h"
#include "kernels/float16.h"
#include "kernels/outliers.h"

enum { NAME_SIZE = 200 };

/* Super-scales and norms reach many weights each. */
static const float slow = 0.25f;

/* One vector of a norm, weights or biases. */
struct vector {
    char name[NAME_SIZE];
    enum source_kind kind; /* as it is stored, and rounded */
    float *now;            /* (n) where the network reads it */
    float *kept;           /* (n) */
    struct adam vars;
};

enum { VECTORS = 2 * BLOCK_NORMS };

struct layer {
    struct params_block rest;
    struct coded *coded[ROLE_COUNT];
    struct bcq_view views[ROLE_COUNT];
    const struct outliers_view *outliers[ROLE_COUNT]; /* beside the codes, fixed; or NULL */
    struct vector vectors[VECTORS];                   /* weights of the norms, then biases */
};

struct student {
    struct source *src;
    struct params *params;
    struct student_options o;
    int n_layers, at; /* the block whose gradients are being made */
    struct layer *layers;
    struct vector final[2];
    float *dense[ROLE_COUNT]; /* expanded weights of one block */
    float *dw;                /* of the largest matrix */
    size_t n_coded;
};

/* -- Norms ----------------------------------------------------------------------------------- */

static float rounded(enum source_kind kind, float x) {
    if (kind == SOURCE_F32) return x;
    return kind == SOURCE_F16 ? f16_to_f32(f32_to_f16(x)) : bf16_to_f32(f32_to_bf16(x));
}

/* A vector of a norm becomes variables; now NULL: the model has none such. */
static int take_vector(struct student *s, struct vector *v, const char *name, float *now, size_t n,
                       bool is_bias, struct error *err) {
    struct source_tensor t;
    double mean = 0.0;
    if (!now) return 0;
    snprintf(v->name, sizeof v->name, "%s", name);
    if (source_find(s->src, name, &t) < 0)
        return error_set(err, -EBADMSG, "tensor '%s' is missing", name);
    v->kind = t.kind;
    v->now = now;
    v->kept = malloc(n * sizeof *v->kept);
    int r = v->kept ? adam_new(&v->vars, n, err) : error_set(err, -ENOMEM, "tune: out of memory");
    if (r < 0) return r;
    memcpy(v->vars.x, now, n * sizeof *now);
    memcpy(v->kept, now, n * sizeof *now);
    for (size_t i = 0; i < n; i++) mean += fabs((double)now[i]) / (double)n;
    for (size_t i = 0; i < n; i++) {
        /* Biases may be 0 where their neighbours are not. */
        float unit = is_bias ? (float)mean : fabsf(now[i]);
        v->vars.unit[i] = s->o.groups_only ? 0.0f : slow * unit;
    }
    return 0;
}

static void move_vector(struct vector *v, const struct adam_step *step) {
    if (!v->now) return;
    adam_move(&v->vars, step);
    for (size_t i = 0; i < v->vars.n; i++) v->now[i] = rounded(v->kind, v->vars.x[i]);
}

static void keep_vector(struct vector *v) {
    if (v->now) memcpy(v->kept, v->now, v->vars.n * sizeof *v->now);
}

static void back_vector(struct vector *v) {
    if (!v->now) return;
    memcpy(v->vars.x, v->kept, v->vars.n * sizeof *v->kept);
    memcpy(v->now, v->kept, v->vars.n * sizeof *v->kept);
    adam_reset(&v->vars);
}

static void free_vector(struct vector *v) {
    free(v->kept);
    adam_free(&v->vars);
}

/* -- Making one ------------------------------------------------------------------------------ */

static int take_coded(struct student *s, struct layer *l, int layer, enum model_role role,
                      struct error *err) {
    char name[NAME_SIZE];
    struct source_tensor t;
    params_linear_name(s->params, layer, role, name, sizeof name - 8);
    strcat(name, ".bcq");
    if (l->rest.linear[role] || source_find(s->src, name, &t) < 0) return 0;
    if (t.rotation)
        return error_set(err, -ENOTSUP,
                         "tensor '%.100s': is stored between rotations, which tuning cannot go "
                         "through",
                         name);
    l->views[role] = t.bcq;
    l->outliers[role] = t.outliers;
    s->n_coded++;
    return coded_new(&l->coded[role], &l->views[role], s->o.groups_only ? 0.0f : slow, err);
}

static int take_layer(struct student *s, int layer, struct error *err) {
    struct layer *l = &s->layers[layer];
    size_t hidden = (size_t)source_config(s->src)->hidden;
    int r = params_block_read_rest(&l->rest, s->params, layer, err);
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
        r = take_coded(s, l, layer, (enum model_role)role, err);
    for (int i = 0; r == 0 && i < VECTORS; i++) {
        char name[NAME_SIZE];
        bool is_bias = i >= BLOCK_NORMS;
        enum block_norm norm = (enum block_norm)(i % BLOCK_NORMS);
        params_norm_name(s->params, layer, norm, is_bias ? ".bias" : ".weight", name, sizeof name);
        r = take_vector(s, &l->vectors[i], name,
                        is_bias ? l->rest.norm_b[norm] : l->rest.norm_w[norm], hidden, is_bias,
                        err);
    }
    return r;
}

static int take_final(struct student *s, struct params_ends *ends, struct error *err) {
    size_t hidden = (size_t)source_config(s->src)->hidden;
    int r = 0;
    for (int i = 0; r == 0 && i < 2; i++) {
        char name[NAME_SIZE];
        params_final_norm_name(s->params, i ? ".bias" : ".weight", name, sizeof name);
        r = take_vector(s, &s->final[i], name, i ? ends->final_norm_b : ends->final_norm_w, hidden,
                        i == 1, err);
    }
    return r;
}

static int make_room(struct student *s, struct error *err) {
    size_t largest = 1;
    for (int role = 0; role < ROLE_COUNT; role++) {
        size_t n = 0;
        for (int i = 0; i < s->n_layers; i++) {
            if (!s->layers[i].coded[role]) continue;
            const struct bcq_spec *spec = &s->layers[i].views[role].spec;
            n = (size_t)spec->rows * (size_t)spec->cols;
        }
        if (n > largest) largest = n;
        s->dense[role] = n ? malloc(n * sizeof(float)) : NULL;
        if (n && !s->dense[role]) return error_set(err, -ENOMEM, "tune: out of memory");
    }
    s->dw = malloc(largest * sizeof *s->dw);
    return s->dw ? 0 : error_set(err, -ENOMEM, "tune: out of memory");
}

int student_new(struct student **ret, struct source *src, struct params *params,
                struct params_ends *ends, const struct student_options *options,
                struct error *err) {
    struct student *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, -ENOMEM, "tune: out of memory");
    *s = (struct student){
        .src = src, .params = params, .o = *options, .n_layers = source_config(src)->n_layers};
    s->layers = calloc((size_t)s->n_layers, sizeof *s->layers);
    int r = s->layers ? 0 : error_set(err, -ENOMEM, "tune: out of memory");
    for (int i = 0; r == 0 && i < s->n_layers; i++) r = take_layer(s, i, err);
    if (r == 0 && s->n_coded == 0)
        r = error_set(err, -ENOTSUP, "tune: the model to tune has no binary-coded matrix");
    if (r == 0) r = take_final(s, ends, err);
    if (r == 0) r = make_room(s, err);
    if (r < 0)
        student_free(s);
    else
        *ret = s;
    return r;
}

void student_free(struct student *s) {
    if (!s) return;
    for (int i = 0; s->layers && i < s->n_layers; i++) {
        struct layer *l = &s->layers[i];
        params_block_free(&l->rest);
        for (int role = 0; role < ROLE_COUNT; role++) coded_free(l->coded[role]);
        for (int k = 0; k < VECTORS; k++) free_vector(&l->vectors[k]);
    }
    for (int k = 0; k < 2; k++) free_vector(&s->final[k]);
    for (int role = 0; role < ROLE_COUNT; role++) free(s->dense[role]);
    free(s->layers);
    free(s->dw);
    free(s);
}

/* -- In the network -------------------------------------------------------------------------- */

static int give_weights(void *arg, int layer, struct block_weights *ret, struct error *err) {
    struct student *s = arg;
    struct layer *l = &s->layers[layer];
    (void)err;
    *ret = params_block_view(&l->rest);
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (!l->coded[role]) continue;
        coded_expand(l->coded[role], s->dense[role], s->o.n_threads);
        for (int row = 0; l->outliers[role] && row < l->outliers[role]->rows; row++)
            outliers_add_row(l->outliers[role], row,
                             s->dense[role] + (size_t)row * (size_t)l->outliers[role]->cols);
        ret->linear[role] = s->dense[role];
    }
    return 0;
}

static void take_gradient(void *arg, enum model_role role, const float *x, const float *dy, int n,
                          int rows, int cols) {
    struct student *s = arg;
    struct coded *coded = s->layers[s->at].coded[role];
    if (!coded) return;
    gemm(GEMM_TN, rows, cols, n, dy, x, 0.0f, s->dw, s->o.n_threads);
    coded_add_gradient(coded, s->dw, s->o.n_threads);
}

static void want_grads(void *arg, int layer, struct block_grads *ret) {
    struct student *s = arg;
    s->at = layer;
    ret->see = take_gradient;
    ret->arg = s;
    if (s->o.groups_only) return;
    for (int i = 0; i < BLOCK_NORMS; i++) {
        ret->norm_w[i] = s->layers[layer].vectors[i].vars.g;
        ret->norm_b[i] = s->layers[layer].vectors[BLOCK_NORMS + i].vars.g;
    }
}

struct network_blocks student_blocks(struct student *s) {
    return (struct network_blocks){.weights = give_weights, .grads = want_grads, .arg = s};
}

void student_final_grads(struct student *s, float **ret_w, float **ret_b) {
    *ret_w = s->o.groups_only ? NULL : s->final[0].vars.g;
    *ret_b = s->o.groups_only ? NULL : s->final[1].vars.g;
}

/* -- All of it ------------------------------------------------------------------------------- */

void student_move(struct student *s, const struct adam_step *step) {
    for (int i = 0; i < s->n_layers; i++) {
        struct layer *l = &s->layers[i];
        for (int role = 0; role < ROLE_COUNT; role++)
            if (l->coded[role]) coded_move(l->coded[role], step);
        for (int k = 0; k < VECTORS; k++) move_vector(&l->vectors[k], step);
    }
    for (int k = 0; k < 2; k++) move_vector(&s->final[k], step);
}

void student_keep(struct student *s) {
    for (int i = 0; i < s->n_layers; i++) {
        struct layer *l = &s->layers[i];
        for (int role = 0; role < ROLE_COUNT; role++)
            if (l->coded[role]) coded_keep(l->coded[role]);
        for (int k = 0; k < VECTORS; k++) keep_vector(&l->vectors[k]);
    }
    for (int k = 0; k < 2; k++) keep_vector(&s->final[k]);
}

void student_back(struct student *s) {
    for (int i = 0; i < s->n_layers; i++) {
        struct layer *l = &s->layers[i];
        for (int role = 0; role < ROLE_COUNT; role++)
            if (l->coded[role]) coded_back(l->coded[role]);
        for (int k = 0; k < VECTORS; k++) back_vector(&l->vectors[k]);
    }
    for (int k = 0; k < 2; k++) back_vector(&s->final[k]);
}

typedef int visit_bytes(void *arg, void *bytes, size_t n, struct error *err);

static int visit_vector(struct vector *v, visit_bytes *visit, void *arg, struct error *err) {
    size_t n = v->vars.n * sizeof(float);
    if (!v->now) return 0;
    int r = visit(arg, v->vars.x, 3 * n, err);
    if (r == 0) r = visit(arg, v->now, n, err);
    return r == 0 ? visit(arg, v->kept, n, err) : r;
}

static int visit_coded(struct coded *c, visit_bytes *visit, void *arg, struct error *err) {
    size_t n, bytes;
    float *state = coded_state(c, &n);
    uint8_t *kept = coded_kept(c, &bytes);
    int r = visit(arg, state, n * sizeof *state, err);
    return r == 0 ? visit(arg, kept, bytes, err) : r;
}

int student_visit(struct student *s, visit_bytes *visit, void *arg, struct error *err) {
    int r = 0;
    for (int i = 0; r == 0 && i < s->n_layers; i++) {
        struct layer *l = &s->layers[i];
        for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
            if (l->coded[role]) r = visit_coded(l->coded[role], visit, arg, err);
        for (int k = 0; r == 0 && k < VECTORS; k++)
            r = visit_vector(&l->vectors[k], visit, arg, err);
    }
    for (int k = 0; r == 0 && k < 2; k++) r = visit_vector(&s->final[k], visit, arg, err);
    return r;
}

/* -- Into a checkpoint ----------------------------------------------------------------------- */

static int write_vector(const struct vector *v, struct checkpoint_writer *w, struct error *err) {
    if (!v->now) return 0;
    size_t n = v->vars.n;
    uint16_t *half = malloc(n * sizeof *half);
    if (!half) return error_set(err, -ENOMEM, "tune: out of memory");
    for (size_t i = 0; i < n; i++)
        half[i] = v->kind == SOURCE_F16 ? f32_to_f16(v->kept[i]) : f32_to_bf16(v->kept[i]);
    bool wide = v->kind == SOURCE_F32;
    struct safetensors_tensor t = {.name = v->name,
                                   .type = wide                    ? SAFETENSORS_F32
                                           : v->kind == SOURCE_F16 ? SAFETENSORS_F16
                                                                   : SAFETENSORS_BF16,
                                   .n_dims = 1,
                                   .shape = {n},
                                   .data = wide ? (const void *)v->kept : half,
                                   .n_bytes = n * (wide ? sizeof(float) : sizeof *half)};
    int r = checkpoint_writer_add(w, &t, err);
    free(half);
    return r;
}

static int write_coded(const struct student *s, const struct coded *c, int layer,
                       enum model_role role, struct checkpoint_writer *w, struct error *err) {
    char name[NAME_SIZE];
    void *block;
    size_t bytes;
    params_linear_name(s->params, layer, role, name, sizeof name - 8);
    strcat(name, ".bcq");
    int r = coded_block(c, &block, &bytes, err);
    if (r < 0) return r;
    struct safetensors_tensor t = {.name = name,
                                   .type = SAFETENSORS_U8,
                                   .n_dims = 1,
                                   .shape = {bytes},
                                   .data = block,
                                   .n_bytes = bytes};
    r = checkpoint_writer_add(w, &t, err);
    free(block);
    return r;
}

int student_write(const struct student *s, struct checkpoint_writer *w, struct error *err) {
    int r = 0;
    for (int i = 0; r == 0 && i < s->n_layers; i++) {
        const struct layer *l = &s->layers[i];
        for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
            if (l->coded[role])
                r = write_coded(s, l->coded[role], i, (enum model_role)role, w, err);
        for (int k = 0; r == 0 && k < VECTORS; k++) r = write_vector(&l->vectors[k], w, err);
    }
    for (int k = 0; r == 0 && k < 2; k++) r = write_vector(&s->final[k], w, err);
    return r;
}

bool student_has(const struct student *s, const char *name) {
    for (int i = 0; i < s->n_layers; i++)
        for (int k = 0; k < VECTORS; k++)
            if (s->layers[i].vectors[k].now && !strcmp(s->layers[i].vectors[k].name, name))
                return true;
    for (int k = 0; k < 2; k++)
        if (s->final[k].now && !strcmp(s->final[k].name, name)) return true;
    return false; /* coded blocks are no dense tensors, so nobody carries them */
}
