#include "engine/engine_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/engine_budget.h"
#include "engine/kv.h"
#include "engine/model.h"
#include "engine/model_backend.h"
#include "engine/source.h"
#include "engine/tokenizer.h"

enum { MOST_LOGIT_ROWS = 128 }; /* with guesses; without there is one for each sequence */

static int context_length(const struct engine *e) {
    int context = source_config(e->src)->max_positions, wanted = e->options.max_context;
    return wanted > 0 && wanted < context ? wanted : context;
}

/* Nobody needs the rest of a model whose engine is being closed. */
static bool on_progress(void *arg, size_t read, size_t total, size_t packed) {
    struct engine *e = arg;
    e->stats.load_done = (int64_t)read;
    e->stats.load_total = (int64_t)total;
    engine_mail_flush(&e->mail, &e->stats);
    if (engine_budget_check_weights(e, packed, &e->over_budget) < 0) return false;
    return !engine_mail_closing(&e->mail);
}

/* A step's results are read at one go where that takes little memory. */
static int logit_rows(const struct engine_options *o) {
    int rows = o->max_running * (1 + o->draft_tokens);
    int most = o->max_running > MOST_LOGIT_ROWS ? o->max_running : MOST_LOGIT_ROWS;
    if (rows > o->step_tokens) rows = o->step_tokens;
    return rows < most ? rows : most;
}

static int open_model(struct engine *e, struct error *err) {
    const struct engine_options *o = &e->options;
    struct backend_options backend = {.name = o->backend,
                                      .level = o->level,
                                      .n_threads = o->n_threads,
                                      .n_devices = o->n_devices};
    if (o->null) return engine_null_init(&e->null, o, &e->texts, source_config(e->src)->vocab, err);
    int r = model_backend_open(&e->backend, &backend, e->src, err);
    if (r < 0) return r;
    e->n_logit_rows = logit_rows(o);
    struct model_options model = {.progress = on_progress,
                                  .progress_arg = e,
                                  .kv_type = engine_budget_kv(o),
                                  .act_bits = o->act_bits,
                                  .max_batch_tokens = o->step_tokens,
                                  .max_logit_rows = e->n_logit_rows};
    r = model_open(&e->model, e->backend, e->src, &model, err);
    return r == -ECANCELED && e->over_budget.text[0]
               ? error_set(err, -EINVAL, "%s", e->over_budget.text)
               : r;
}

static int open_policy(struct engine *e, int n_blocks, struct error *err) {
    struct scheduler_options o = {.max_running = e->options.max_running,
                                  .max_waiting = e->options.max_waiting,
                                  .step_tokens = e->options.null ? ENGINE_NULL_STEP_TOKENS
                                                                 : e->options.step_tokens,
                                  .max_context = e->shape.context,
                                  .no_cache = e->options.no_prefix_cache};
    int r = kv_new(&e->kv, n_blocks);
    if (r < 0) return error_set(err, r, "KV pool: out of memory");
    return scheduler_new(&e->scheduler, &o, e->kv, err);
}

static int allocate_queue(struct engine *e, struct error *err) {
    e->sequences = calloc((size_t)e->capacity, sizeof(struct sequence *));
    e->places = calloc((size_t)e->capacity, sizeof(struct engine_job *));
    e->owners = calloc((size_t)e->capacity, sizeof(struct sequence *));
    e->shares = calloc((size_t)e->options.max_running, sizeof *e->shares);
    return e->sequences && e->places && e->owners && e->shares
               ? 0
               : error_set(err, -ENOMEM, "engine: out of memory");
}

static int allocate_step(struct engine *e, struct error *err) {
    size_t running = (size_t)e->options.max_running, tokens = (size_t)e->options.step_tokens;
    size_t blocks = (size_t)kv_blocks_for(e->shape.context), vocab = (size_t)e->shape.vocab;
    size_t rows = (size_t)e->n_logit_rows, width = (size_t)source_config(e->src)->embed_dim;
    e->work = sampler_work_new(e->shape.vocab);
    e->tokens = calloc(tokens, sizeof *e->tokens);
    e->positions = calloc(tokens, sizeof *e->positions);
    e->seqs = calloc(tokens, sizeof *e->seqs);
    e->blocks = calloc(running, blocks * sizeof *e->blocks);
    e->firsts = calloc(running, sizeof *e->firsts);
    e->rows = calloc(rows, sizeof *e->rows);
    e->best = calloc(rows, sizeof *e->best);
    e->heats = calloc(rows, sizeof *e->heats);
    e->ranks = calloc(rows, BACKEND_TOP * sizeof *e->ranks);
    e->sums = calloc(rows, (size_t)backend_spans(e->shape.vocab) * sizeof *e->sums);
    e->logits = calloc(rows, vocab * sizeof *e->logits);
    e->hidden = calloc(rows, width * sizeof *e->hidden);
    if (!e->work || !e->tokens || !e->positions || !e->seqs || !e->blocks || !e->firsts ||
        !e->rows || !e->best || !e->heats || !e->ranks || !e->sums || !e->logits || !e->hidden)
        return error_set(err, -ENOMEM, "engine: out of memory");
    return 0;
}

static void fill_shape(struct engine *e, int context, int n_blocks) {
    const struct engine_texts *t = &e->texts;
    /* A sequence cannot be longer than the whole pool. */
    int64_t positions = (int64_t)n_blocks * BACKEND_KV_BLOCK;
    if (positions < context) context = (int)positions;
    e->shape = (struct sequence_shape){.context = context,
                                       .vocab = source_config(e->src)->vocab,
                                       .ends = t->ends,
                                       .n_ends = t->n_ends,
                                       .tokenizer = t->tokenizer,
                                       .chat = t->chat,
                                       .chat_reason = t->chat_reason.text,
                                       .bos = t->bos,
                                       .eos = t->eos};
    /* 4: normalizing to composed characters shrinks a text by less than that. */
    e->max_text = (size_t)context * t->longest_token * 4;
}

static void proposed_sampling(struct sampler_params *params, const struct config_generation *g) {
    sampler_defaults(params);
    if (g->temperature >= 0) params->temperature = g->temperature;
    if (g->do_sample == 0) params->temperature = 0;
    if (g->top_p > 0) params->top_p = g->top_p;
    if (g->min_p >= 0 && g->min_p < 1) params->min_p = g->min_p;
    if (g->top_k >= 0) params->top_k = g->top_k;
}

static size_t kv_token_bytes(const struct engine *e) {
    enum dtype type = engine_budget_kv(&e->options);
    return e->model ? model_kv_block_bytes(source_config(e->src), type) / BACKEND_KV_BLOCK : 0;
}

static void fill_info(struct engine *e) {
    const struct model_config *c = source_config(e->src);
    if (e->model)
        snprintf(e->backend_text, sizeof e->backend_text, "%s (%s)", e->backend->name,
                 e->backend->detail);
    else
        snprintf(e->backend_text, sizeof e->backend_text, "null (token %d)", e->null.token);
    e->info = (struct engine_info){
        .architecture = config_arch_name(c->arch),
        .method = c->quantization.method[0] ? c->quantization.method : "none",
        .backend = e->backend_text,
        .backend_note = e->backend ? e->backend->note : "",
        .bits = c->quantization.bits,
        .group = c->quantization.group,
        .context = e->shape.context,
        .vocab = c->vocab,
        .n_layers = c->n_layers,
        .hidden = c->hidden,
        .has_tokenizer = e->texts.tokenizer != NULL,
        .has_chat_template = e->texts.chat != NULL,
        .weight_bytes = e->model ? model_weight_bytes(e->model) : 0,
        .kv_bytes = e->model ? model_kv_bytes(e->model) : 0,
        .work_bytes = engine_budget_work(e, e->shape.context),
        .kv_block_tokens = BACKEND_KV_BLOCK,
        .kv_token_bytes = kv_token_bytes(e),
    };
    struct backend_memory device;
    if (e->backend && backend_get_memory(e->backend, &device)) {
        e->info.device_total = device.total;
        e->info.device_free = device.free;
        e->info.device_work = device.work;
    }
    proposed_sampling(&e->info.sampling, &c->generation);
}

int engine_load(struct engine *e, struct error *err) {
    int n_blocks = 0, context = context_length(e);
    int r = engine_texts_open(&e->texts, e->src, err);
    if (r == 0) r = open_model(e, err);
    if (r == 0 && e->model) r = model_reserve(e->model, e->options.max_running, context, err);
    if (r == 0) r = engine_budget_pool(e, context, &n_blocks, err);
    if (r == 0 && e->model) r = model_make_kv(e->model, n_blocks, err);
    if (r < 0) return r;
    fill_shape(e, context, n_blocks);
    r = open_policy(e, n_blocks, err);
    if (r == 0) r = allocate_queue(e, err);
    if (r == 0 && e->model) r = allocate_step(e, err);
    if (r < 0) return r;
    fill_info(e);
    e->stats.load_done = e->stats.load_total;
    e->stats.kv_blocks = e->stats.kv_blocks_free = n_blocks;
    e->stats.last_step_ns = engine_mail_now_ns();
    return 0;
}

void engine_unload(struct engine *e) {
    scheduler_free(e->scheduler);
    kv_free(e->kv);
    model_close(e->model);
    backend_close(e->backend);
    sampler_work_free(e->work);
    engine_texts_close(&e->texts);
    free(e->sequences);
    free(e->places);
    free(e->owners);
    free(e->shares);
    free(e->tokens);
    free(e->positions);
    free(e->seqs);
    free(e->blocks);
    free(e->firsts);
    free(e->rows);
    free(e->best);
    free(e->heats);
    free(e->ranks);
    free(e->sums);
    free(e->logits);
    free(e->hidden);
}
