#include "server/quantize_text.h"

#include <stdlib.h>

#include "engine/quant/quantize.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/quantize_args.h"

enum {
    OPT_WINDOWS = 3072,
    OPT_CTX,
    OPT_SEED,
    OPT_STATIC,
    OPT_SEQUENTIAL,
    OPT_MOMENTS,
    OPT_TARGET,
    OPT_TARGET_SHARE,
    OPT_TOKENS,
    OPT_ACT_MOMENTS,
    OPT_STATE_MEMORY
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Calibration:", 3},
    {"calibration", 'f', "FILE", 0, "UTF-8 text; without one the model writes its own", 3},
    {"windows", OPT_WINDOWS, "N", 0, "Windows of the text (64)", 3},
    {"ctx", OPT_CTX, "N", 0, "Tokens of a window (1024; own text 512)", 3},
    {"seed", OPT_SEED, "N", 0, "Of the own text (0)", 3},
    {"static", OPT_STATIC, NULL, 0, "Inputs from the unquantized model, not the coded blocks", 3},
    {"sequential", OPT_SEQUENTIAL, NULL, 0,
     "Inputs from the coded blocks (default, also with --effort normal)", 3},
    {"moments", OPT_MOMENTS, "DIR", 0,
     "With --static: keep the second moments of the inputs in DIR, or take those that another run "
     "on the same model and text has kept there",
     3},
    {"target", OPT_TARGET, "NAME", 0,
     "What a matrix reproduces: weights (default; its own outputs), output (the original's, which "
     "makes up for the blocks before; half as slow again) or block (the same, and down the state "
     "that the original's block leaves)",
     3},
    {"target-share", OPT_TARGET_SHARE, "X", 0,
     "With --target output or block: how much of the way there a matrix goes, 0.01 to 1 (0.25, "
     "0.3)",
     3},
    {"tokens", OPT_TOKENS, "NAME", 0,
     "How tokens count: equal (default), or state (o, down: by the state they add to)", 3},
    {"act-moments", OPT_ACT_MOMENTS, "NAME", 0,
     "With --act-bits: second moments of plain or of rounded inputs (auto: rounded at 8)", 3},
    {"state-memory", OPT_STATE_MEMORY, "MIB", 0,
     "Hidden states kept in memory; more go to a file in $TMPDIR (2048)", 3},
    {0},
};

static const char *target_name(int i) { return quantize_target_name((enum quantize_target)i); }

static const char *tokens_name(int i) { return quantize_tokens_name((enum moments_tokens)i); }

static const char *moments_name(int i) { return quantize_moments_name((enum quantize_moments)i); }

static int take(struct quantize_options *o, int key, const char *value, struct error *err) {
    int mebibytes = 0, choice = 0, r;
    float number = 0.0f;
    switch (key) {
    case OPT_ACT_MOMENTS:
        r = cli_choice("--act-moments", value, moments_name, &choice, err);
        o->moments = (enum quantize_moments)choice;
        return r;
    case 'f':
        o->calibration = value;
        return 0;
    case OPT_WINDOWS:
        return cli_int(&o->windows, "--windows", value, 1, 1 << 16, err);
    case OPT_CTX:
        return cli_int(&o->ctx, "--ctx", value, 2, 1 << 20, err);
    case OPT_SEED:
        return cli_seed(&o->seed, "--seed", value, err);
    case OPT_STATIC:
        o->is_static = true;
        return 0;
    case OPT_SEQUENTIAL:
        o->is_static = false;
        return 0;
    case OPT_MOMENTS:
        o->moments_folder = value;
        return 0;
    case OPT_TARGET:
        r = cli_choice("--target", value, target_name, &choice, err);
        o->target = (enum quantize_target)choice;
        return r;
    case OPT_TARGET_SHARE:
        r = cli_float(&number, "--target-share", value, 0.01f, 1.0f, err);
        o->target_share = strtod(value, NULL);
        return r;
    case OPT_TOKENS:
        r = cli_choice("--tokens", value, tokens_name, &choice, err);
        o->tokens = (enum moments_tokens)choice;
        return r;
    case OPT_STATE_MEMORY:
        r = cli_int(&mebibytes, "--state-memory", value, 1, 1 << 24, err);
        o->state_memory = (size_t)mebibytes << 20;
        return r;
    default:
        return 1;
    }
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct quantize_args *args = state->input;
    struct error err;
    quantize_typed_add(&args->typed, options, key);
    int r = take(&args->o, key, value, &err);
    return cli_parsed(r, state, &err);
}

const struct argp quantize_text_argp = {options, parse, NULL, NULL, NULL, NULL, NULL};
