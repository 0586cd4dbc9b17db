#include "engine/quant/quantize_state.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model_arch.h"
#include "engine/quant/parts.h"
#include "engine/quant/shard.h"
#include "engine/quant/summary.h"
#include "engine/quant/texts.h"
#include "engine/sha256.h"
#include "engine/source.h"
#include "kernels/error.h"

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* Whether a tensor is what a fused pattern ("h.%d.x") names in some block, under any prefix. */
static bool is_fused_weight(const struct quantize *q, const char *name) {
    const struct arch_row *arch = model_arch_find(q->config->arch);
    if (!arch || !arch->fused_qkv) return false;
    const char *hole = strstr(arch->fused_qkv, "%d");
    if (!hole) return false;
    for (int layer = 0; layer < q->config->n_layers; layer++) {
        char full[QUANTIZE_NAME_SIZE];
        snprintf(full, sizeof full, "%.*s%d%s.weight", (int)(hole - arch->fused_qkv),
                 arch->fused_qkv, layer, hole + 2);
        if (ends_with(name, full)) return true;
    }
    return false;
}

bool quantize_leaves_out(void *arg, const char *name) {
    const struct quantize *q = arg;
    char linear[QUANTIZE_NAME_SIZE];
    if (!shard_owns(&q->shard, name)) return true;
    if (q->config->tie_embeddings && !strcmp(name, "lm_head.weight")) return true;
    if (!strcmp(name, "rope_freqs.weight")) return true; /* in the config from now on */
    if (!ends_with(name, ".weight")) return false;
    size_t n = strlen(name) - strlen(".weight");
    model_output_name(q->model, linear, sizeof linear);
    if (q->o.output_bits < 16 && strlen(linear) == n && !memcmp(linear, name, n)) return true;
    for (int layer = 0; layer < q->config->n_layers; layer++) {
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols;
            if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
            model_linear_name(q->model, layer, (enum model_role)role, linear, sizeof linear);
            if (strlen(linear) == n && !memcmp(linear, name, n)) return true;
        }
    }
    return is_fused_weight(q, name);
}

/* Calls visit for the matrices that were made: role by role, block by block. */
static void each_matrix(const struct quantize *q,
                        void (*visit)(const struct quantize *q, enum model_role role, int layer,
                                      const char *name, void *arg),
                        void *arg) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        int rows, cols;
        if (!model_linear_shape(q->model, (enum model_role)role, &rows, &cols)) continue;
        for (int layer = q->shard.first; layer < q->shard.end; layer++) {
            char name[QUANTIZE_NAME_SIZE];
            model_linear_name(q->model, layer, (enum model_role)role, name, sizeof name);
            visit(q, (enum model_role)role, layer, name, arg);
        }
    }
}

static void sum_matrix(const struct quantize *q, enum model_role role, int layer, const char *name,
                       void *arg) {
    int rows, cols;
    (void)layer;
    model_linear_shape(q->model, role, &rows, &cols);
    summary_add(arg, role, (int64_t)rows * cols, json_object_get(q->errors, name));
}

void quantize_summarize(const struct quantize *q, struct quantize_summary *s) {
    *s = (struct quantize_summary){.n_layers = q->shard.end - q->shard.first,
                                   .windows = q->o.windows,
                                   .ctx = q->o.ctx,
                                   .own_text = !q->o.calibration};
    each_matrix(q, sum_matrix, s);
    summary_end(s);
}

static void list_matrix(const struct quantize *q, enum model_role role, int layer, const char *name,
                        void *arg) {
    (void)q;
    shard_add_matrix(arg, name, quantize_role_name(role), layer);
}

static json_t *describe_shard(const struct quantize *q) {
    char model[SHA256_HEX], tokens[SHA256_HEX];
    source_hash(q->src, model);
    quantize_tokens_hash(q, tokens);
    json_t *shard = shard_describe(&q->shard, model, tokens);
    each_matrix(q, list_matrix, shard);
    return shard;
}

static void list_bits(const struct quantize *q, enum model_role role, int layer, const char *name,
                      void *arg) {
    json_object_set_new(arg, name, json_integer(q->bits[layer * ROLE_COUNT + role]));
}

/* The bits that were chosen, and as the checkpoint's own those of most weights. */
static void describe_bits(const struct quantize *q, json_t *o) {
    double weights[BCQ_MAX_BITS + 1] = {0};
    int most = 1;
    json_t *list = json_object();
    each_matrix(q, list_bits, list);
    json_object_set_new(json_object_get(o, "mixed"), "bits", list);
    for (int i = 0; i < q->config->n_layers * ROLE_COUNT; i++) {
        int rows, cols;
        if (model_linear_shape(q->model, (enum model_role)(i % ROLE_COUNT), &rows, &cols))
            weights[q->bits[i]] += (double)rows * cols;
    }
    for (int bits = 2; bits <= BCQ_MAX_BITS; bits++)
        if (weights[bits] > weights[most]) most = bits;
    json_object_set_new(o, "bits", json_integer(most));
}

struct saved {
    double bytes;
    int matrices, of;
};

static void count_saved(const struct quantize *q, enum model_role role, int layer, const char *name,
                        void *arg) {
    struct saved *saved = arg;
    double bytes = quantize_error_value(q, name, "saved_bytes");
    (void)role;
    (void)layer;
    saved->bytes += bytes;
    saved->matrices += bytes > 0.0;
    saved->of++;
}

void quantize_note_saved(const struct quantize *q, const struct quantize_summary *s) {
    struct saved saved = {0};
    char line[160];
    if (q->o.codec == PARTS_PLAIN) return;
    each_matrix(q, count_saved, &saved);
    snprintf(line, sizeof line,
             "codec %s saves %.0f bytes, %.4f bits per weight; %d of %d matrices are smaller so",
             parts_codec_name(q->o.codec), saved.bytes, 8.0 * saved.bytes / (double)s->n_weights,
             saved.matrices, saved.of);
    quantize_note(q, line);
}

int quantize_write_texts(struct quantize *q, const struct quantize_summary *s, struct error *err) {
    json_t *o = quantize_describe(q);
    if (q->bits) describe_bits(q, o);
    if (shard_is_whole(&q->shard))
        summary_describe(o, s);
    else
        json_object_set_new(o, "shard", describe_shard(q));
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    int r = text ? texts_write(q->writer, q->src, text, err)
                 : error_set(err, -ENOMEM, "config: out of memory");
    free(text);
    return r;
}
