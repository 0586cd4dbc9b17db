#include "server/quantize_block.h"

#include <string.h>

#include "engine/quant/blockwise.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/quantize_args.h"

enum {
    OPT_NORM_TWEAK = 2048,
    OPT_LEARN_TRANSFORM,
    OPT_LEARN_CLIP,
    OPT_HESSIAN,
    OPT_HESSIAN_GROUPS,
    OPT_TUNE_BLOCK
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Looking at whole blocks:", 4},
    {"hessian", OPT_HESSIAN, "KIND", 0,
     "What errors cost: plain (default: the inputs alone), guided (by the end loss, for groups of "
     "rows) or fisher (by the end loss, for codebooks)",
     4},
    {"hessian-groups", OPT_HESSIAN_GROUPS, "N", 0, "Groups of rows of --hessian guided (4)", 4},
    {"learn-transform", OPT_LEARN_TRANSFORM, "FORM", 0,
     "Scales of inputs folded into what makes them: none (default), grid or train", 4},
    {"learn-clip", OPT_LEARN_CLIP, "N", OPTION_ARG_OPTIONAL,
     "Train the ranges of codebooks before the column loop, N (4) passes over the text", 4},
    {"tune-block", OPT_TUNE_BLOCK, "N", OPTION_ARG_OPTIONAL,
     "Train scales, biases and codes of each block, N (4) passes over the text", 4},
    {"norm-tweak", OPT_NORM_TWEAK, "FORM", 0,
     "Fit norms to what they gave before: none (default), moments, fit (least squares) or train",
     4},
    {0},
};

static const char *tweak_name(int i) { return blockwise_tweak_name((enum blockwise_tweak)i); }

static const char *transform_name(int i) {
    return blockwise_transform_name((enum blockwise_transform)i);
}

static const char *hessian_name(int i) { return blockwise_hessian_name((enum blockwise_hessian)i); }

static int take(struct blockwise_options *o, int key, const char *value, struct error *err) {
    int choice = 0, r;
    switch (key) {
    case OPT_NORM_TWEAK:
        r = cli_choice("--norm-tweak", value, tweak_name, &choice, err);
        o->tweak = (enum blockwise_tweak)choice;
        return r;
    case OPT_LEARN_TRANSFORM:
        r = cli_choice("--learn-transform", value, transform_name, &choice, err);
        o->transform = (enum blockwise_transform)choice;
        return r;
    case OPT_HESSIAN:
        r = cli_choice("--hessian", value, hessian_name, &choice, err);
        o->hessian = (enum blockwise_hessian)choice;
        return r;
    case OPT_HESSIAN_GROUPS:
        return cli_int(&o->groups, "--hessian-groups", value, 1, 16, err);
    case OPT_LEARN_CLIP:
        o->clip_epochs = BLOCKWISE_EPOCHS;
        if (!value) return 0;
        return cli_int(&o->clip_epochs, "--learn-clip", value, 0, 1000, err);
    case OPT_TUNE_BLOCK:
        o->tune_epochs = BLOCKWISE_EPOCHS;
        if (!value) return 0;
        return cli_int(&o->tune_epochs, "--tune-block", value, 0, 1000, err);
    default:
        return 1;
    }
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct quantize_args *args = state->input;
    struct error err;
    quantize_typed_add(&args->typed, options, key);
    int r = take(&args->o.blockwise, key, value, &err);
    return cli_parsed(r, state, &err);
}

const struct argp quantize_block_argp = {options, parse, NULL, NULL, NULL, NULL, NULL};
