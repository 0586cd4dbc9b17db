#include <argp.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/eval.h"
#include "engine/offline.h"
#include "engine/source.h"
#include "engine/text_file.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/eval_pairs.h"
#include "server/model_source.h"
#include "server/offline_args.h"
#include "server/progress.h"

static const char name[] = "gptqt eval";

enum { LLAMA_CPP_CTX = 512, DEFAULT_CTX = 2048, MAX_CTX = 1 << 20 };

struct args {
    const char *model, *against, *text, *pairs;
    struct eval_options eval;
    struct offline_options open;
    bool json;
};

enum {
    OPT_CTX = 256,
    OPT_CHUNKS,
    OPT_AGAINST,
    OPT_BASE,
    OPT_SAVE_BASE,
    OPT_PROTOCOL,
    OPT_PAIRS,
    OPT_JSON
};

static const struct argp_option options[] = {
    {"text", 'f', "FILE", 0, "UTF-8 text to predict", 0},
    {"ctx", OPT_CTX, "N", 0, "Tokens in a window (2048, or the model's limit; llama.cpp: 512)", 0},
    {"chunks", OPT_CHUNKS, "N", 0, "Windows at most (default: all)", 0},
    {"against", OPT_AGAINST, "MODEL", 0, "Reference model: adds KL divergence and agreement", 0},
    {"save-base", OPT_SAVE_BASE, "FILE", 0,
     "Keep the model's distributions, to compare others with (2 bytes a position and word)", 0},
    {"base", OPT_BASE, "FILE", 0,
     "Such a file in place of the reference: same text, ctx, chunks and protocol", 0},
    {"protocol", OPT_PROTOCOL, "NAME", 0,
     "gptq (default: every token but the first of a window) or llama.cpp (second half; CR LF "
     "stays)",
     0},
    {"pairs", OPT_PAIRS, "FILE", 0,
     "Instead of a text: log-likelihoods of {context, continuation}, one JSON object a line", 0},
    {"json", OPT_JSON, NULL, 0, "Print the result as JSON", 0},
    {0},
};

static int protocol(struct args *args, const char *value, struct error *err) {
    if (!strcmp(value, "gptq"))
        args->eval.protocol = EVAL_GPTQ;
    else if (!strcmp(value, "llama.cpp"))
        args->eval.protocol = EVAL_LLAMA_CPP;
    else
        return error_set(err, -1, "--protocol '%.40s': gptq or llama.cpp is needed", value);
    return 0;
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    struct error err;
    int r = 0;
    switch (key) {
    case 'f':
        args->text = value;
        break;
    case OPT_CTX:
        r = cli_int(&args->eval.ctx, "--ctx", value, 2, MAX_CTX, &err);
        break;
    case OPT_CHUNKS:
        r = cli_int(&args->eval.chunks, "--chunks", value, 1, 1 << 30, &err);
        break;
    case OPT_AGAINST:
        args->against = value;
        break;
    case OPT_BASE:
        args->eval.base = value;
        break;
    case OPT_SAVE_BASE:
        args->eval.save_base = value;
        break;
    case OPT_PROTOCOL:
        r = protocol(args, value, &err);
        break;
    case OPT_PAIRS:
        args->pairs = value;
        break;
    case OPT_JSON:
        args->json = true;
        break;
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &args->open;
        return 0;
    case ARGP_KEY_ARG:
        return cli_model(&args->model, value, state);
    case ARGP_KEY_END:
        if (!args->model) argp_error(state, "MODEL is missing");
        if (!args->text == !args->pairs) argp_error(state, "either --text or --pairs is needed");
        if (args->pairs && args->against) argp_error(state, "--against goes with --text");
        if (args->pairs && (args->eval.base || args->eval.save_base))
            argp_error(state, "--base and --save-base go with --text");
        if (args->against && args->eval.base)
            argp_error(state, "--against and --base both name a reference");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    if (r < 0) argp_error(state, "%s", err.text);
    return 0;
}

static const struct argp_child children[] = {{&offline_argp, 0, NULL, 0}, {0}};
static const struct argp argp = {
    options,  parse, "MODEL", "Measures perplexity on a text in windows without overlap.",
    children, NULL,  NULL};

static void show_progress(void *arg, int64_t done, int64_t total) {
    (void)total;
    progress_update(arg, (double)done, cli_now());
}

static void print_json(const struct args *args, const struct eval_result *r, double seconds) {
    json_t *o = json_pack(
        "{s:f, s:f, s:I, s:i, s:i, s:s, s:f}", "perplexity", r->perplexity, "nll", r->nll, "tokens",
        (json_int_t)r->tokens, "ctx", args->eval.ctx, "chunks", r->chunks, "protocol",
        args->eval.protocol == EVAL_GPTQ ? "gptq" : "llama.cpp", "seconds", seconds);
    if (r->positions) {
        json_object_set_new(o, "kl_mean", json_real(r->kl_mean));
        json_object_set_new(o, "kl_p99", json_real(r->kl_p99));
        json_object_set_new(o, "top1_agreement", json_real(r->top1_agreement));
    }
    json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
    putchar('\n');
    json_decref(o);
}

static void print_text(const struct eval_result *r) {
    printf("perplexity %.4f  (%.5f nats per token over %lld tokens, %d windows)\n", r->perplexity,
           r->nll, (long long)r->tokens, r->chunks);
    if (r->positions)
        printf("KL to the reference %.5f (99th percentile %.4f), same best token %.2f %%\n",
               r->kl_mean, r->kl_p99, 100 * r->top1_agreement);
}

/* The whole file is one stream of tokens, without special ones. */
static int read_tokens(int32_t **ret, size_t *ret_n, const struct offline *o,
                       const struct args *args, struct error *err) {
    char *text;
    size_t n;
    const char *path = args->text;
    int r = args->eval.protocol == EVAL_LLAMA_CPP ? text_file_read_bytes(&text, &n, path, err)
                                                  : text_file_read(&text, &n, path, err);
    if (r < 0) return r;
    r = tokenizer_encode(o->tokenizer, text, n, 0, ret, ret_n, err);
    free(text);
    return r < 0 ? error_prefix(err, r, "%s", path) : 0;
}

static void choose_context(struct args *args, const struct source *src) {
    int limit = source_config(src)->max_positions;
    if (!args->eval.ctx) args->eval.ctx = args->eval.protocol ? LLAMA_CPP_CTX : DEFAULT_CTX;
    if (args->eval.ctx > limit) args->eval.ctx = limit;
}

static int open_model(struct offline *o, const char *model, struct args *args, bool tokenizer,
                      struct error *err) {
    struct source *src;
    int r = model_source_open(&src, model, err);
    if (r < 0) return r;
    if (tokenizer) choose_context(args, src);
    struct offline_options open = args->open;
    open.context = args->eval.ctx;
    open.tokenizer = tokenizer;
    /* What flags do to the model is measured against a reference that they leave alone. */
    if (!tokenizer) open.model.act_bits = 0;
    if (!tokenizer && open.model.kv_type == DTYPE_I8) open.model.kv_type = DTYPE_F32;
    r = offline_open(o, src, &open, err);
    return r < 0 ? error_prefix(err, r, "%s", model) : 0;
}

/* llama-perplexity starts each window with BOS where the tokenizer would add one. */
static int32_t added_bos(const struct offline *o) {
    int32_t *ids, bos = -1;
    size_t n;
    if (tokenizer_encode(o->tokenizer, "a", 1, TOKENIZER_ADD_SPECIAL, &ids, &n, NULL) < 0)
        return -1;
    if (n > 1 && tokenizer_is_special(o->tokenizer, ids[0])) bos = ids[0];
    free(ids);
    return bos;
}

static int run(struct args *args, struct error *err) {
    struct offline model = {0}, reference = {0};
    int32_t *tokens = NULL;
    size_t n_tokens = 0;
    struct eval_result result;
    struct progress progress;
    double started = 0;
    int r = open_model(&model, args->model, args, true, err);
    if (r == 0 && args->against) r = open_model(&reference, args->against, args, false, err);
    if (r == 0) r = read_tokens(&tokens, &n_tokens, &model, args, err);
    if (r == 0) {
        size_t windows = n_tokens / (size_t)args->eval.ctx;
        if (args->eval.chunks && windows > (size_t)args->eval.chunks)
            windows = (size_t)args->eval.chunks;
        started = cli_now();
        progress_begin(&progress, "eval", "tokens", (double)windows * args->eval.ctx, started,
                       false);
        args->eval.bos = added_bos(&model);
        args->eval.progress = show_progress;
        args->eval.progress_arg = &progress;
        r = eval_run(&result, model.model, reference.model, tokens, n_tokens, &args->eval, err);
    }
    if (r == 0) {
        double now = cli_now();
        progress_end(&progress, (double)result.chunks * args->eval.ctx, now);
        if (args->json)
            print_json(args, &result, now - started);
        else
            print_text(&result);
    }
    free(tokens);
    offline_close(&model);
    offline_close(&reference);
    return r;
}

/* Windows as long as the model allows: pairs are not cut. */
static int run_pairs(struct args *args, struct error *err) {
    struct offline model = {0};
    struct source *src;
    int r = model_source_open(&src, args->model, err);
    if (r < 0) return r;
    args->open.context = args->eval.ctx;
    args->open.tokenizer = true;
    r = offline_open(&model, src, &args->open, err);
    r = r < 0 ? error_prefix(err, r, "%s", args->model) : eval_pairs_run(&model, args->pairs, err);
    offline_close(&model);
    return r;
}

int cmd_eval(int argc, char **argv) {
    struct args args = {.open.model = {.kv_type = DTYPE_F32,
                                       .max_batch_tokens = EVAL_BATCH_TOKENS,
                                       .max_logit_rows = EVAL_LOGIT_ROWS}};
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    int r = args.pairs ? run_pairs(&args, &err) : run(&args, &err);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
