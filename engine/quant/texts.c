#include "engine/quant/texts.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

static int no_memory(struct error *err) { return error_set(err, -ENOMEM, "texts: out of memory"); }

/* What Llama 3 models have; GGUF files keep the factors that follow from it, one a frequency. */
static const double low_factor = 1.0, high_factor = 4.0, original = 8192.0;

static double llama3_factor(double theta, int i, int head_dim, double factor) {
    double wavelength = 2.0 * 3.14159265358979323846 * pow(theta, 2.0 * i / head_dim);
    if (wavelength < original / high_factor) return 1.0;
    if (wavelength > original / low_factor) return factor;
    double smooth = (original / wavelength - low_factor) / (high_factor - low_factor);
    return 1.0 / ((1.0 - smooth) / factor + smooth);
}

/* Lowest frequencies are slowed by the whole factor. */
static int check_llama3(const struct model_config *c, struct error *err) {
    double factor = (double)c->rope.factors[c->head_dim / 2 - 1];
    for (int i = 0; i < c->head_dim / 2; i++) {
        double want = llama3_factor(c->rope.theta, i, c->head_dim, factor);
        if (!(fabs((double)c->rope.factors[i] - want) <= 1e-3 * want))
            return error_set(err, -ENOTSUP,
                             "rope_freqs.weight: element %d is %g, Llama 3's scaling has %g", i,
                             (double)c->rope.factors[i], want);
    }
    return 0;
}

static json_t *rope_scaling(const struct model_config *c) {
    if (c->rope.scaling == ROPE_LINEAR)
        return json_pack("{s:s, s:f}", "rope_type", "linear", "factor", c->rope.factor);
    if (c->rope.scaling == ROPE_FACTORS)
        return json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor",
                         (double)c->rope.factors[c->head_dim / 2 - 1], "low_freq_factor",
                         low_factor, "high_freq_factor", high_factor,
                         "original_max_position_embeddings", (int)original);
    return json_null();
}

static json_t *end_tokens(const struct model_config *c) {
    if (c->n_eos == 0) return json_null();
    if (c->n_eos == 1) return json_integer(c->eos[0]);
    json_t *list = json_array();
    for (int i = 0; i < c->n_eos; i++) json_array_append_new(list, json_integer(c->eos[i]));
    return list;
}

/* GGUF sources are of the llama architecture. */
static json_t *llama_config(const struct model_config *c) {
    /* The shortest decimal that gives the float back. */
    char eps[32];
    snprintf(eps, sizeof eps, "%.9g", (double)c->norm_eps);
    json_t *o = json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:b, s:b}",
        "architectures", "LlamaForCausalLM", "model_type", "llama", "hidden_size", c->hidden,
        "num_hidden_layers", c->n_layers, "num_attention_heads", c->n_heads, "num_key_value_heads",
        c->n_kv_heads, "head_dim", c->head_dim, "intermediate_size", c->intermediate, "vocab_size",
        c->vocab, "max_position_embeddings", c->max_positions, "rms_norm_eps", strtod(eps, NULL),
        "rope_theta", c->rope.theta, "hidden_act", "silu", "tie_word_embeddings",
        (int)c->tie_embeddings, "attention_bias", (int)c->attention_bias);
    if (!o) return NULL;
    json_object_set_new(o, "rope_scaling", rope_scaling(c));
    json_object_set_new(o, "eos_token_id", end_tokens(c));
    json_object_set_new(o, "bos_token_id", c->bos >= 0 ? json_integer(c->bos) : json_null());
    return o;
}

static int made_config(struct checkpoint_writer *w, const struct source *src,
                       const char *quantization, struct error *err) {
    const struct model_config *c = source_config(src);
    if (c->rope.scaling == ROPE_FACTORS) {
        int r = check_llama3(c, err);
        if (r < 0) return r;
    }
    json_t *o = llama_config(c);
    char *text = o ? json_dumps(o, 0) : NULL;
    int r = text ? checkpoint_writer_add_config(w, text, strlen(text), quantization, err)
                 : no_memory(err);
    free(text);
    json_decref(o);
    return r;
}

static int add_json(struct checkpoint_writer *w, const char *name, json_t *o, struct error *err) {
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    int r = text ? checkpoint_writer_add_file(w, name, text, strlen(text), err) : no_memory(err);
    free(text);
    return r;
}

static int made_tokenizer(struct checkpoint_writer *w, const struct source *src,
                          const struct tokenizer *t, struct error *err) {
    static const char *const fields[] = {"bos_token", "eos_token"};
    struct buf json = {0};
    int r = tokenizer_write_json(t, &json);
    if (r < 0)
        error_set(err, r, "tokenizer.json: out of memory");
    else
        r = checkpoint_writer_add_file(w, "tokenizer.json", json.data, json.len, err);
    buf_free(&json);
    json_t *config = json_pack("{s:s}", "tokenizer_class", "PreTrainedTokenizerFast");
    for (int i = 0; i < 2 && r == 0; i++) {
        char *token;
        r = source_text_special(&token, src, t, fields[i], err);
        if (r < 0) break;
        if (*token) json_object_set_new(config, fields[i], json_string(token));
        free(token);
    }
    char *template = NULL;
    if (r == 0 && source_text_template(&template, src, NULL) == 0)
        json_object_set_new(config, "chat_template", json_string(template));
    free(template);
    if (r == 0) r = add_json(w, "tokenizer_config.json", config, err);
    json_decref(config);
    return r;
}

/* A model without a usable vocabulary still serves token ids. */
static int made_texts(struct checkpoint_writer *w, const struct source *src,
                      const char *quantization, struct error *err) {
    struct tokenizer *t = NULL;
    int r = made_config(w, src, quantization, err);
    if (r == 0 && source_text_tokenizer(&t, src, NULL) == 0) r = made_tokenizer(w, src, t, err);
    tokenizer_free(t);
    return r;
}

int texts_write(struct checkpoint_writer *w, const struct source *src, const char *quantization,
                struct error *err) {
    static const char *const names[] = {"generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "special_tokens_map.json",
                                        "chat_template.jinja"};
    const char *text;
    size_t n;
    int r = 0;
    if (source_file_text(src, "config.json", &text, &n) < 0)
        return made_texts(w, src, quantization, err);
    r = checkpoint_writer_add_config(w, text, n, quantization, err);
    for (size_t i = 0; r == 0 && i < sizeof names / sizeof *names; i++)
        if (source_file_text(src, names[i], &text, &n) == 0)
            r = checkpoint_writer_add_file(w, names[i], text, n, err);
    return r;
}
