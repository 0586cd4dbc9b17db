#include <argp.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "engine/bench.h"
#include "engine/config.h"
#include "engine/offline.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/model_source.h"
#include "server/offline_args.h"

static const char name[] = "gptqt bench";

enum { BATCH_TOKENS = 512, MAX_TOKENS = 1 << 20, MAX_BATCH = 256 };

struct args {
    const char *model;
    struct bench_options bench;
    struct offline_options open;
    bool json, profile;
};

enum { OPT_PROMPT = 256, OPT_GEN, OPT_BATCH, OPT_JSON, OPT_PROFILE, OPT_NO_READ };

static const struct argp_option options[] = {
    {"prompt", OPT_PROMPT, "N", 0, "Prompt tokens (128)", 0},
    {"gen", OPT_GEN, "N", 0, "Tokens to generate (64)", 0},
    {"batch", OPT_BATCH, "N", 0, "Sequences at a time (1)", 0},
    {"profile", OPT_PROFILE, NULL, 0,
     "Also print where the time of a decode step goes (CPU back end)", 0},
    {"no-read", OPT_NO_READ, NULL, 0,
     "No read passes between decode steps, which drive a small model out of the caches", 0},
    {"json", OPT_JSON, NULL, 0, "Print the result as JSON", 0},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    struct bench_options *b = &args->bench;
    struct error err;
    int r = 0;
    switch (key) {
    case OPT_PROMPT:
        r = cli_int(&b->prompt, "--prompt", value, 1, MAX_TOKENS, &err);
        break;
    case OPT_GEN:
        r = cli_int(&b->gen, "--gen", value, 1, MAX_TOKENS, &err);
        break;
    case OPT_BATCH:
        r = cli_int(&b->batch, "--batch", value, 1, MAX_BATCH, &err);
        break;
    case OPT_PROFILE:
        args->profile = true;
        break;
    case OPT_NO_READ:
        b->no_read = true;
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
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    if (r < 0) argp_error(state, "%s", err.text);
    return 0;
}

static const struct argp_child children[] = {{&offline_argp, 0, NULL, 0}, {0}};
static const struct argp argp = {options,
                                 parse,
                                 "MODEL",
                                 "Measures prefill and decode speed, beside a plain read of as "
                                 "many bytes in the same run.",
                                 children,
                                 NULL,
                                 NULL};

static double left_over(const struct bench_result *r) {
    double left = r->step;
    for (int part = 0; part < PROFILE_PARTS; part++) left -= r->profile.seconds[part];
    return left;
}

static json_t *profile_json(const struct bench_options *o, const struct bench_result *r) {
    json_t *parts = json_object();
    for (int part = 0; part < PROFILE_PARTS; part++)
        json_object_set_new(parts, profile_name((enum profile_part)part),
                            json_pack("{s:f, s:f}", "seconds", r->profile.seconds[part], "calls",
                                      (double)r->profile.calls[part] / o->gen));
    return json_pack("{s:f, s:o, s:f, s:f, s:f}", "step_seconds", r->step, "parts", parts,
                     "between_seconds", left_over(r), "greedy_seconds", r->greedy, "drawn_seconds",
                     r->drawn);
}

static void print_profile(const struct bench_options *o, const struct bench_result *r) {
    printf("\nof a decode step of %.1f us, mean:\n", r->step * 1e6);
    for (int part = 0; part < PROFILE_PARTS; part++)
        printf("  %-16s %9.1f us %6.1f %% %6.1f calls\n", profile_name((enum profile_part)part),
               r->profile.seconds[part] * 1e6, 100 * r->profile.seconds[part] / r->step,
               (double)r->profile.calls[part] / o->gen);
    printf("  %-16s %9.1f us %6.1f %%\n", "between them", left_over(r) * 1e6,
           100 * left_over(r) / r->step);
    printf("and for each token after it:\n");
    printf("  %-16s %9.1f us %6.1f %%\n", "greedy", r->greedy * 1e6, 100 * r->greedy / r->step);
    printf("  %-16s %9.1f us %6.1f %%\n", "top 50, 0.9", r->drawn * 1e6, 100 * r->drawn / r->step);
}

static void print_json(const struct bench_options *o, const struct offline *model,
                       const struct bench_result *r, double peak) {
    char hash[24];
    snprintf(hash, sizeof hash, "%016" PRIx64, r->logits_hash);
    json_t *out = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:s, s:i, s:i, s:i, s:s, s:i}",
        "prefill_tokens_per_second", r->prefill_rate, "decode_tokens_per_second", r->decode_rate,
        "decode_mean_tokens_per_second", r->decode_mean_rate, "time_to_first_token", r->first_token,
        "weight_gb_per_second", r->weight_rate / 1e9, "peak_memory_mb", peak / 1e6, "weight_bytes",
        (json_int_t)o->weight_bytes, "logits_hash", hash, "prompt", o->prompt, "gen", o->gen,
        "batch", o->batch, "backend", model->backend->detail, "threads", o->n_threads);
    if (!o->no_read) {
        json_object_set_new(out, "read_gb_per_second", json_real(r->read_rate / 1e9));
        json_object_set_new(out, "limit_fraction", json_real(r->limit_fraction));
    }
    if (o->profile) json_object_set_new(out, "profile", profile_json(o, r));
    json_dumpf(out, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(out);
}

static void print_text(const struct bench_options *o, const struct offline *model,
                       const struct bench_result *r, double peak) {
    printf("backend     %s (%s)\n", model->backend->name, model->backend->detail);
    printf("prefill     %.1f tokens/s (%d tokens)\n", r->prefill_rate, o->prompt);
    printf("first token %.4f s\n", r->first_token);
    printf("decode      %.1f tokens/s (%d sequence%s)\n", r->decode_rate, o->batch,
           o->batch > 1 ? "s" : "");
    printf("weights     %.2f GB/s", r->weight_rate / 1e9);
    if (!o->no_read)
        printf(" of %.2f GB/s read (%.2f of the limit)", r->read_rate / 1e9, r->limit_fraction);
    putchar('\n');
    printf("memory      %.1f MB at most\n", peak / 1e6);
    printf("logits      %016" PRIx64 "\n", r->logits_hash);
    if (o->profile) print_profile(o, r);
}

static int run(struct args *args, struct error *err) {
    struct source *src;
    int r = model_source_open(&src, args->model, err);
    if (r < 0) return r;
    struct bench_options *b = &args->bench;
    args->open.context = b->prompt + b->gen;
    args->open.sequences = b->batch;
    args->open.model.max_logit_rows = b->batch;
    struct offline model;
    r = offline_open(&model, src, &args->open, err);
    if (r < 0) return r;
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    b->n_threads = args->open.backend.n_threads ? args->open.backend.n_threads : cores;
    b->weight_bytes = model_decode_bytes(model.model);
    b->now = cli_now;
    if (args->profile && strcmp(model.backend->name, "cpu") != 0) {
        error_set(err, -1, "--profile: back end %s queues its work, only cpu can be timed so",
                  model.backend->name);
        offline_close(&model);
        return -1;
    }
    if (args->profile) b->profile = model.backend;
    struct bench_result result;
    r = bench_run(&result, model.model, BATCH_TOKENS, b, err);
    if (r == 0) {
        struct rusage usage;
        getrusage(RUSAGE_SELF, &usage);
        double peak = (double)usage.ru_maxrss * 1024;
        if (args->json)
            print_json(b, &model, &result, peak);
        else
            print_text(b, &model, &result, peak);
    }
    offline_close(&model);
    return r;
}

int cmd_bench(int argc, char **argv) {
    struct args args = {.bench = {.prompt = 128, .gen = 64, .batch = 1},
                        .open.model = {.kv_type = DTYPE_F16, .max_batch_tokens = BATCH_TOKENS}};
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    int r = run(&args, &err);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
