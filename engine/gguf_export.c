#include "engine/gguf_export.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/gguf_llama.h"
#include "engine/gguf_quants.h"
#include "engine/gguf_write.h"
#include "engine/positions.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "kernels/float16.h"

enum { ROWS = 64 /* read at a time where a tensor's rows stay in order */ };

struct export {
    const struct source *src;
    const struct model_config *config;
    const struct gguf_quants_type *matrix, *vector;
    struct gguf_write out;
    size_t n_found; /* tensors of the source that have a place */
};

/* One tensor of the file and where it comes from. */
struct item {
    char stored[GGUF_LLAMA_NAME + 8];
    struct source_tensor from;
    const struct gguf_quants_type *type;
    int rope_dim; /* rows alternate in heads of this many; 0 = they do not */
};

/* Some files leave "model." out. */
static int find(const struct export *e, const char *name, struct source_tensor *ret) {
    static const char prefix[] = "model.";
    int r = source_find(e->src, name, ret);
    if (r < 0 && !strncmp(name, prefix, sizeof prefix - 1))
        r = source_find(e->src, name + sizeof prefix - 1, ret);
    return r;
}

static int find_weight(const struct export *e, const char *original, struct source_tensor *ret) {
    char name[GGUF_LLAMA_NAME + 8];
    snprintf(name, sizeof name, "%s.weight", original);
    if (find(e, name, ret) == 0) return 0;
    snprintf(name, sizeof name, "%s.bcq", original);
    return find(e, name, ret);
}

static int get_weight(struct item *item, const struct export *e,
                      const struct gguf_llama_tensor *want, struct error *err) {
    *item = (struct item){.type = want->is_vector ? e->vector : e->matrix,
                          .rope_dim = want->rope_heads ? e->config->head_dim : 0};
    snprintf(item->stored, sizeof item->stored, "%s.weight", want->stored);
    if (find_weight(e, want->original, &item->from) < 0)
        return error_set(err, -EBADMSG, "tensor '%s.weight' is missing", want->original);
    if ((uint64_t)item->from.rows == want->rows && (uint64_t)item->from.cols == want->cols)
        return 0;
    return error_set(err, -EBADMSG, "tensor '%s': shape [%lld, %lld], the model needs [%lld, %lld]",
                     item->from.name, (long long)item->from.rows, (long long)item->from.cols,
                     (long long)want->rows, (long long)want->cols);
}

/* False where the matrix has none. */
static bool get_bias(struct item *item, const struct export *e,
                     const struct gguf_llama_tensor *want) {
    char name[GGUF_LLAMA_NAME + 8];
    *item =
        (struct item){.type = e->vector, .rope_dim = want->rope_heads ? e->config->head_dim : 0};
    snprintf(item->stored, sizeof item->stored, "%s.bias", want->stored);
    snprintf(name, sizeof name, "%s.bias", want->original);
    return find(e, name, &item->from) == 0 && (uint64_t)item->from.cols == want->rows;
}

/* What the format calls fastest comes first. */
static void declare(struct export *e, const struct item *item) {
    uint64_t dims[2] = {(uint64_t)item->from.cols, (uint64_t)item->from.rows};
    gguf_write_tensor(&e->out, item->stored, item->type, item->from.n_dims, dims);
    e->n_found++;
}

/* dst: n values as the type has them. */
static int narrow(void *dst, const float *values, size_t n, const struct item *item,
                  struct error *err) {
    uint16_t *half = dst;
    if (item->type->type == GGUF_F32) {
        memcpy(dst, values, n * sizeof *values);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        half[i] = item->type->type == GGUF_F16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
        /* Infinity in fp16, and what the source has of infinity itself. */
        if (item->type->type == GGUF_F16 && (half[i] & 0x7c00) == 0x7c00)
            return error_set(err, -ERANGE, "tensor '%s': %g is beyond fp16", item->from.name,
                             (double)values[i]);
    }
    return 0;
}

/* A stored head takes the two halves of the original's in turns. */
static int64_t original_row(int64_t stored, int head_dim) {
    int64_t head = stored / head_dim, i = stored % head_dim, half = head_dim / 2;
    return head * head_dim + i % 2 * half + i / 2;
}

/* Rows [at, at + n), whole heads where they alternate. */
static int put_rows(struct export *e, const struct item *item, int64_t at, int64_t n, float *wide,
                    void *narrowed, struct error *err) {
    size_t cols = (size_t)item->from.cols, row_bytes = cols * (size_t)item->type->n_bytes;
    int r = source_read_rows(e->src, &item->from, at, n, wide, err);
    for (int64_t i = 0; r == 0 && i < n; i++) {
        int64_t from = item->rope_dim ? original_row(i, item->rope_dim) : i;
        r = narrow((char *)narrowed + (size_t)i * row_bytes, wide + (size_t)from * cols, cols, item,
                   err);
    }
    if (r < 0) return r;
    return gguf_write_data(&e->out, narrowed, (size_t)n * row_bytes, err);
}

/* How many rows to read at a time. Where a rotation mixes all of them they are made at once. */
static int64_t step_of(const struct item *item) {
    int64_t rows = item->from.rows, step = item->rope_dim ? item->rope_dim : ROWS;
    return item->from.rotation || rows < step ? rows : step;
}

/* The elements of a vector are turned as a matrix's rows are. */
static int put_turned_vector(struct export *e, const struct item *item, float *wide, float *turned,
                             struct error *err) {
    int r = source_read_rows(e->src, &item->from, 0, 1, wide, err);
    for (int64_t i = 0; r == 0 && i < item->from.cols; i++)
        turned[i] = wide[original_row(i, item->rope_dim)];
    if (r < 0) return r;
    return gguf_write_data(&e->out, turned, (size_t)item->from.cols * sizeof *turned, err);
}

static int put(struct export *e, const struct item *item, struct error *err) {
    const struct source_tensor *t = &item->from;
    int64_t step = step_of(item);
    float *wide = malloc((size_t)step * (size_t)t->cols * sizeof *wide);
    float *narrowed = malloc((size_t)step * (size_t)t->cols * sizeof *narrowed);
    int r = wide && narrowed ? 0 : error_set(err, -ENOMEM, "tensor '%s': out of memory", t->name);
    if (r == 0 && item->rope_dim && t->n_dims == 1) {
        r = put_turned_vector(e, item, wide, narrowed, err);
    } else {
        for (int64_t at = 0; r == 0 && at < t->rows; at += step)
            r = put_rows(e, item, at, t->rows - at < step ? t->rows - at : step, wide, narrowed,
                         err);
    }
    if (r == 0) r = gguf_write_end(&e->out, err);
    free(wide);
    free(narrowed);
    source_release(e->src, t);
    return r;
}

/* Calls visit for every tensor of the file but rope_freqs, in one order. */
static int each(struct export *e,
                int (*visit)(struct export *e, const struct item *, struct error *),
                struct error *err) {
    int r = 0, n = gguf_llama_count(e->config);
    for (int i = 0; r == 0 && i < n; i++) {
        struct gguf_llama_tensor want;
        struct item item;
        gguf_llama_at(&want, e->config, i);
        r = get_weight(&item, e, &want, err);
        if (r == 0) r = visit(e, &item, err);
        if (r == 0 && get_bias(&item, e, &want)) r = visit(e, &item, err);
    }
    return r;
}

static int declare_item(struct export *e, const struct item *item, struct error *err) {
    (void)err;
    declare(e, item);
    return 0;
}

/* Tensors that the model does not read: a tied output matrix, tables that the config implies. */
static bool is_idle(const struct export *e, const char *name) {
    static const char table[] = "rotary_emb.inv_freq", stored[] = "rope_freqs.weight";
    size_t n = strlen(name), m = sizeof table - 1;
    if (e->config->tie_embeddings && !strcmp(name, "lm_head.weight")) return true;
    return !strcmp(name, stored) || (n >= m && !strcmp(name + n - m, table));
}

/* What has no place in the file must not be lost in silence: the model would be another. What lies
 * beside a coded matrix is part of its rows. */
static int check_all_found(const struct export *e, struct error *err) {
    size_t n = 0;
    for (size_t i = 0; i < source_count(e->src); i++) {
        const struct source_tensor *t = source_at(e->src, i);
        n += t->kind != SOURCE_SIDE && !is_idle(e, t->name);
    }
    if (n == e->n_found) return 0;
    return error_set(
        err, -ENOTSUP,
        "the model has %zu tensors, a Llama of this shape in GGUF %zu: the rest has no "
        "place there",
        n, e->n_found);
}

static void put_hyperparameters(struct export *e, enum dtype type) {
    const struct model_config *c = e->config;
    struct gguf_write *w = &e->out;
    /* llama.cpp's numbers of "mostly" that type. */
    uint32_t file_type = type == DTYPE_F32 ? 0 : type == DTYPE_F16 ? 1 : 32;
    gguf_write_text(w, "general.architecture", "llama", 5);
    gguf_write_u32(w, "general.file_type", file_type);
    gguf_write_u32(w, "llama.vocab_size", (uint32_t)c->vocab);
    gguf_write_u32(w, "llama.context_length", (uint32_t)c->max_positions);
    gguf_write_u32(w, "llama.embedding_length", (uint32_t)c->hidden);
    gguf_write_u32(w, "llama.block_count", (uint32_t)c->n_layers);
    gguf_write_u32(w, "llama.feed_forward_length", (uint32_t)c->intermediate);
    gguf_write_u32(w, "llama.attention.head_count", (uint32_t)c->n_heads);
    gguf_write_u32(w, "llama.attention.head_count_kv", (uint32_t)c->n_kv_heads);
    gguf_write_u32(w, "llama.attention.key_length", (uint32_t)c->head_dim);
    gguf_write_u32(w, "llama.attention.value_length", (uint32_t)c->head_dim);
    gguf_write_u32(w, "llama.rope.dimension_count", (uint32_t)c->head_dim);
    gguf_write_f32(w, "llama.attention.layer_norm_rms_epsilon", c->norm_eps);
    gguf_write_f32(w, "llama.rope.freq_base", (float)c->rope.theta);
    if (c->rope.scaling == ROPE_LINEAR) {
        gguf_write_text(w, "llama.rope.scaling.type", "linear", 6);
        gguf_write_f32(w, "llama.rope.scaling.factor", (float)c->rope.factor);
    }
}

static int put_texts(struct export *e, struct error *err) {
    static const char *const ends[] = {"tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const struct model_config *c = e->config;
    struct tokenizer *t = NULL;
    char *template = NULL;
    int r = source_text_tokenizer(&t, e->src, err);
    if (r == 0)
        r = tokenizer_write_gguf(t, c->vocab, c->bos, c->n_eos ? c->eos[0] : -1, &e->out, err);
    for (int i = 1; r == 0 && i < c->n_eos && i < 3; i++)
        gguf_write_u32(&e->out, ends[i - 1], (uint32_t)c->eos[i]);
    if (r == 0 && source_text_template(&template, e->src, NULL) == 0)
        gguf_write_text(&e->out, "tokenizer.chat_template", template, strlen(template));
    free(template);
    tokenizer_free(t);
    return r;
}

/* Llama 3's scaling is a tensor in this format, even where the config has it as numbers. */
static bool has_factors(const struct model_config *c) {
    return c->rope.scaling == ROPE_LLAMA3 || c->rope.scaling == ROPE_FACTORS;
}

static void declare_factors(struct export *e) {
    uint64_t n = (uint64_t)e->config->head_dim / 2;
    gguf_write_tensor(&e->out, "rope_freqs.weight", e->vector, 1, &n);
}

/* What the plain frequencies are divided by. */
static int put_factors(struct export *e, struct error *err) {
    const struct model_config *c = e->config;
    double scaled[CONFIG_MAX_HEAD_DIM / 2];
    float divisors[CONFIG_MAX_HEAD_DIM / 2];
    positions_rope(scaled, c);
    for (int i = 0; i < c->head_dim / 2; i++)
        divisors[i] = (float)(pow(c->rope.theta, -2.0 * i / c->head_dim) / scaled[i]);
    size_t n = (size_t)c->head_dim / 2 * sizeof *divisors;
    int r = gguf_write_data(&e->out, divisors, n, err);
    return r == 0 ? gguf_write_end(&e->out, err) : r;
}

static int run(struct export *e, const char *path, enum dtype type, struct error *err) {
    bool factors = has_factors(e->config);
    put_hyperparameters(e, type);
    int r = put_texts(e, err);
    if (r == 0) r = each(e, declare_item, err);
    if (r == 0) r = check_all_found(e, err);
    if (r == 0 && factors) declare_factors(e);
    if (r == 0) r = gguf_write_begin(&e->out, path, err);
    if (r == 0) r = each(e, put, err);
    if (r == 0 && factors) r = put_factors(e, err);
    return r == 0 ? gguf_write_commit(&e->out, err) : r;
}

int gguf_export(const char *path, const struct source *src, enum dtype type, struct error *err) {
    uint32_t matrix = type == DTYPE_F32 ? GGUF_F32 : type == DTYPE_F16 ? GGUF_F16 : GGUF_BF16;
    struct export e = {.src = src,
                       .config = source_config(src),
                       .matrix = gguf_quants_find(matrix),
                       .vector = gguf_quants_find(GGUF_F32),
                       .out = GGUF_WRITE_INIT};
    if (e.config->arch != ARCH_LLAMA)
        return error_set(err, -ENOTSUP, "architecture '%s': only llama can be written as GGUF here",
                         config_arch_name(e.config->arch));
    int r = run(&e, path, type, err);
    gguf_write_close(&e.out);
    return r;
}
