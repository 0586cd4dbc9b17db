#include "server/quantize_args.h"

#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/effort.h"
#include "engine/quant/lay.h"
#include "engine/quant/output.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/quantize_block.h"
#include "server/quantize_idle.h"
#include "server/quantize_text.h"

enum {
    OPT_METHOD = 256,
    OPT_PARAMS,
    OPT_SCALE_BITS,
    OPT_ACT_BITS,
    OPT_OUTPUT_BITS,
    OPT_POW2,
    OPT_BIAS_BITS,
    OPT_STEP_BITS,
    OPT_RANGES,
    OPT_ASYMMETRIC,
    OPT_WEIGHTING,
    OPT_ACT_ORDER,
    OPT_NO_ACT_ORDER,
    OPT_MIN_MSE,
    OPT_BCQ_BIAS,
    OPT_DAMP,
    OPT_EXPLORE,
    OPT_REFINE,
    OPT_OUTLIERS,
    OPT_OUTLIER_FORM,
    OPT_INCOHERENCE,
    OPT_CODEC,
    OPT_MIXED,
    OPT_MIXED_BY,
    OPT_MIXED_PER,
    OPT_CODES,
    OPT_BEAM,
    OPT_STOP_AFTER,
    OPT_LAYERS,
    OPT_EFFORT,
    OPT_ORDER,
    OPT_MERGE,
    OPT_LEVEL,
    OPT_FORCE,
    OPT_JSON
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "What is stored:", 1},
    {"bits", 'b', "N", 0, "Bits per weight, 1 to 4 (3)", 1},
    {"codec", OPT_CODEC, "NAME", 0,
     "How scales and biases of the compact kinds are stored: none (default) or pvq (as numbers of "
     "pyramid vectors, expanded when loaded; smaller, the same values)",
     1},
    {"mixed", OPT_MIXED, "BUDGET", 0,
     "Bits of each matrix, 1 to 4, chosen for this average of bits per weight, all included; or "
     "bits: as many as --bits in every matrix would take; none: --bits in every matrix (default "
     "without an effort, and with fast)",
     1},
    {"mixed-by", OPT_MIXED_BY, "NAME", 0,
     "What a matrix's bits are judged by: gradient (default: the model's output, to second order), "
     "kl (the same by many runs of the model) or loss (the matrix's output)",
     1},
    {"mixed-per", OPT_MIXED_PER, "NAME", 0,
     "matrix (default) or input: matrices that read one input share their bits", 1},
    {"group", 'g', "N", 0, "Weights that share scales: 16, 32, 64, 128 or row (16)", 1},
    {"params", OPT_PARAMS, "KIND", 0,
     "compact (default: small integers, a shape per row), compact-group (a shape per group) or "
     "free "
     "(fp16 scale per bit)",
     1},
    {"scale-bits", OPT_SCALE_BITS, "N", 0, "Bits of a group's scale, compact kinds (4)", 1},
    {"bias-bits", OPT_BIAS_BITS, "N", 0, "Bits of a group's bias, compact kinds (5)", 1},
    {"output-bits", OPT_OUTPUT_BITS, "N", 0,
     "Bits of the output matrix, and of the embedding where they are one: 16 (as it is), 8 "
     "(default), 6 or 4, half a bit of scales on top",
     1},
    {"act-bits", OPT_ACT_BITS, "N", 0,
     "Inputs of the coded layers when the model runs: 16 as they are, 8 or 4 rounded (16)", 1},
    {"pow2", OPT_POW2, NULL, 0,
     "Every scale is a power of two: products with rounded inputs can do with shifts", 1},
    {NULL, 0, NULL, 0, "How the codes are found:", 2},
    {"method", OPT_METHOD, "NAME", 0, "gptqt (default), gptq, rtn, bcq or gptq-bcq", 2},
    {"step-bits", OPT_STEP_BITS, "N", 0, "Bits of the integer grid of step one (bits + 2; 5 at 4)",
     2},
    {"ranges", OPT_RANGES, "N", 0, "Range factors explored, 2 to 40 (10)", 2},
    {"asymmetric", OPT_ASYMMETRIC, NULL, 0, "Explore both ends of the range on their own (slow)",
     2},
    {"weighting", OPT_WEIGHTING, "NAME", 0,
     "What an error in a column weighs when codebooks are chosen: diag (default), none, u", 2},
    {"effort", OPT_EFFORT, "NAME", 0,
     "fast, normal or best: sets windows, ranges, explore, refine, static, target and tokens, but "
     "for fast mixed, and with best tune; flags of these names win",
     2},
    {"order", OPT_ORDER, "NAME", 0,
     "Columns by falling input energy (act, default), whole groups by it (group), or none", 2},
    {"act-order", OPT_ACT_ORDER, NULL, 0, "The same as --order act", 2},
    {"no-act-order", OPT_NO_ACT_ORDER, NULL, 0, "The same as --order none", 2},
    {"min-mse", OPT_MIN_MSE, NULL, 0, "gptq, rtn: shrink each range to the least error", 2},
    {"bcq-bias", OPT_BCQ_BIAS, NULL, 0, "bcq: fit a bias as well", 2},
    {"damp", OPT_DAMP, "X", 0, "Share of the mean diagonal added to it (0.01)", 2},
    {"codes", OPT_CODES, "NAME", 0,
     "Search of the codes: gptq (default: column loop), greedy (nearest level), cd (then "
     "coordinate "
     "descent), beam (then a beam search) or additive (then scales by turns; params free)",
     2},
    {"beam", OPT_BEAM, "N", 0, "codes beam, additive: assignments kept for a row, 2 to 1024 (8)",
     2},
    {"explore", OPT_EXPLORE, "N", 0,
     "gptqt: sets of parameters per row judged by the loss they end with, 0 to 32 (0)", 2},
    {"refine", OPT_REFINE, "N", 0, "Rounds of refit and coordinate descent afterwards (0)", 2},
    {"incoherence", OPT_INCOHERENCE, "SIDES", 0,
     "Store matrices between random rotations: none (default), input or both", 2},
    {"outlier-form", OPT_OUTLIER_FORM, "NAME", 0,
     "What --outliers keeps: sparse (default: single weights) or columns (whole inputs)", 2},
    {"outliers", OPT_OUTLIERS, "P", 0,
     "Per cent of the weights, up to 5, that stay fp16 beside the codes (0)", 2},
    {NULL, 0, NULL, 0, "Running:", 4},
    {"threads", 't', "N", 0, "Threads (default: all processors)", 4},
    {"cpu-level", OPT_LEVEL, "LEVEL", 0, "ref, avx2, avx512, amx, neon or auto", 4},
    {"force", OPT_FORCE, NULL, 0, "Replace what is at OUT", 4},
    {"stop-after", OPT_STOP_AFTER, "N", 0, "Stop after N blocks; the next run goes on there", 4},
    {"layers", OPT_LAYERS, "A:B", 0,
     "Only blocks A to B-1 (of A: to the last), as a part for --merge; needs --static", 4},
    {"merge", OPT_MERGE, NULL, 0, "Join parts: the arguments are OUT PART...", 4},
    {"json", OPT_JSON, NULL, 0, "Print the result as JSON", 4},
    {0},
};

static const char *method_name(int i) { return quantize_method_name((enum layer_method)i); }

static const char *kind_name(int i) { return quantize_kind_name((enum bcq_kind)i); }

static const char *weighting_name(int i) {
    return quantize_weighting_name((enum layer_weighting)i);
}

static const char *codec_name(int i) { return parts_codec_name((enum parts_codec)i); }

static const char *by_name(int i) { return sensitivity_by_name((enum sensitivity_by)i); }

static const char *per_name(int i) { return sensitivity_per_name((enum sensitivity_per)i); }

/* How large things become; 1 for a key of another kind. */
static int size_option(struct quantize_args *args, int key, const char *value, struct error *err) {
    struct sensitivity_options *m = &args->o.mixed;
    int choice = 0, r;
    float number = 0.0f;
    switch (key) {
    case OPT_CODEC:
        r = cli_choice("--codec", value, codec_name, &choice, err);
        args->o.codec = (enum parts_codec)choice;
        return r;
    case OPT_MIXED:
        m->as_bits = strcmp(value, "bits") == 0;
        m->budget = 0.0;
        if (m->as_bits || strcmp(value, "none") == 0) return 0;
        r = cli_float(&number, "--mixed", value, 0.5f, 64.0f, err);
        m->budget = strtod(value, NULL);
        return r;
    case OPT_MIXED_BY:
        r = cli_choice("--mixed-by", value, by_name, &choice, err);
        m->by = (enum sensitivity_by)choice;
        return r;
    case OPT_MIXED_PER:
        r = cli_choice("--mixed-per", value, per_name, &choice, err);
        m->per = (enum sensitivity_per)choice;
        return r;
    default:
        return 1;
    }
}

static const char *search_name(int i) { return codes_name((enum codes_search)i); }

static const char *step_name(int i) { return effort_name((enum effort)i); }

static const char *order_name(int i) {
    static const char *const names[] = {"act", "group", "none"};
    return i < 3 ? names[i] : NULL;
}

static const char *outlier_form_name(int i) {
    static const char *const names[] = {"sparse", "columns"};
    return i < 2 ? names[i] : NULL;
}

static const char *incoherence_name(int i) {
    return quantize_incoherence_name((enum layer_incoherence)i);
}

static int group_size(struct quantize_args *args, const char *text, struct error *err) {
    if (!strcmp(text, "row")) {
        args->o.layer.group = 0;
        return 0;
    }
    int group, r = cli_int(&group, "--group", text, 16, 128, err);
    if (r < 0) return r;
    if (group & (group - 1))
        return error_set(err, -1, "--group '%s': 16, 32, 64, 128 or row is needed", text);
    args->o.layer.group = group;
    return 0;
}

static int method_option(struct quantize_args *args, int key, const char *value,
                         struct error *err) {
    struct layer_options *l = &args->o.layer;
    int choice = 0, r = 0;
    float number = 0.0f;
    switch (key) {
    case OPT_METHOD:
        r = cli_choice("--method", value, method_name, &choice, err);
        l->method = (enum layer_method)choice;
        return r;
    case OPT_PARAMS:
        r = cli_choice("--params", value, kind_name, &choice, err);
        l->kind = (enum bcq_kind)choice;
        return r;
    case OPT_WEIGHTING:
        r = cli_choice("--weighting", value, weighting_name, &choice, err);
        l->weighting = (enum layer_weighting)choice;
        return r;
    case OPT_DAMP:
        r = cli_float(&number, "--damp", value, 0.0f, 10.0f, err);
        /* The decimal that was typed, not its nearest float. */
        l->damp = strtod(value, NULL);
        return r;
    case OPT_CODES:
        r = cli_choice("--codes", value, search_name, &choice, err);
        l->codes.search = (enum codes_search)choice;
        return r;
    case OPT_BEAM:
        return cli_int(&l->codes.beam, "--beam", value, 2, 1024, err);
    case OPT_STEP_BITS:
        return cli_int(&l->step_bits, "--step-bits", value, 1, 6, err);
    case OPT_RANGES:
        return cli_int(&l->n_ranges, "--ranges", value, 2, 40, err);
    case OPT_EXPLORE:
        return cli_int(&l->explore, "--explore", value, 0, LAY_MAX_VARIANTS, err);
    case OPT_REFINE:
        return cli_int(&l->refine, "--refine", value, 0, 100, err);
    case OPT_INCOHERENCE:
        r = cli_choice("--incoherence", value, incoherence_name, &choice, err);
        l->incoherence = (enum layer_incoherence)choice;
        return r;
    case OPT_OUTLIER_FORM:
        r = cli_choice("--outlier-form", value, outlier_form_name, &choice, err);
        l->whole_outliers = choice == 1;
        return r;
    case OPT_OUTLIERS:
        r = cli_float(&number, "--outliers", value, 0.0f, OUTLIERS_MAX_SHARE, err);
        l->outliers = strtod(value, NULL);
        return r;
    case OPT_ASYMMETRIC:
        l->asymmetric = true;
        return 0;
    case OPT_ORDER:
        r = cli_choice("--order", value, order_name, &choice, err);
        l->act_order = choice < 2;
        l->group_order = choice == 1;
        return r;
    case OPT_ACT_ORDER:
        l->act_order = true;
        return 0;
    case OPT_NO_ACT_ORDER:
        l->act_order = false;
        return 0;
    case OPT_MIN_MSE:
        l->min_mse = true;
        return 0;
    case OPT_BCQ_BIAS:
        l->bcq_bias = true;
        return 0;
    default:
        return 1;
    }
}

/* "A:B" or "A:". */
static int layer_range(struct quantize_options *o, const char *text, struct error *err) {
    const char *colon = strchr(text, ':');
    char first[16];
    if (!colon || (size_t)(colon - text) >= sizeof first)
        return error_set(err, -1, "--layers '%.40s': A:B is needed", text);
    memcpy(first, text, (size_t)(colon - text));
    first[colon - text] = 0;
    int end = 0, r = cli_int(&o->first_block, "--layers", first, 0, 1 << 16, err);
    if (r == 0 && colon[1]) r = cli_int(&end, "--layers", colon + 1, 1, 1 << 16, err);
    if (r < 0) return r;
    if (colon[1] && end <= o->first_block)
        return error_set(err, -1, "--layers '%.40s': B must be more than A", text);
    o->end_block = end;
    return 0;
}

static int other_option(struct quantize_args *args, int key, const char *value, struct error *err) {
    struct quantize_options *o = &args->o;
    int r;
    switch (key) {
    case 'b':
        return cli_int(&o->layer.bits, "--bits", value, 1, BCQ_MAX_BITS, err);
    case 'g':
        return group_size(args, value, err);
    case OPT_SCALE_BITS:
        return cli_int(&o->layer.scale_bits, "--scale-bits", value, 1, 8, err);
    case OPT_BIAS_BITS:
        return cli_int(&o->layer.bias_bits, "--bias-bits", value, 2, 8, err);
    case OPT_POW2:
        o->layer.pow2 = true;
        return 0;
    case OPT_ACT_BITS:
        return cli_act_bits(&o->act_bits, value, err);
    case OPT_OUTPUT_BITS:
        r = cli_int(&o->output_bits, "--output-bits", value, 4, 16, err);
        if (r == 0 && output_check(o->output_bits, NULL) < 0)
            r = error_set(err, -1, "--output-bits '%s': 16, 8, 6 or 4 is needed", value);
        return r;
    case 't':
        return cli_int(&o->layer.n_threads, "--threads", value, 1, 256, err);
    case OPT_LEVEL:
        o->backend.level = value;
        return 0;
    case OPT_FORCE:
        o->force = true;
        return 0;
    case OPT_STOP_AFTER:
        return cli_int(&o->stop_after, "--stop-after", value, 1, 1 << 16, err);
    case OPT_LAYERS:
        return layer_range(o, value, err);
    case OPT_EFFORT:
        return cli_choice("--effort", value, step_name, &args->effort, err);
    case OPT_MERGE:
        args->merge = true;
        return 0;
    case OPT_JSON:
        args->json = true;
        return 0;
    default:
        return 1;
    }
}

/* With --merge the first argument is OUT and the others are parts, else they are MODEL and OUT.
 * Options have all been seen by then: argp puts arguments last. */
static void take_arguments(struct quantize_args *args, struct argp_state *state) {
    int n = state->argc - state->next;
    char **list = state->argv + state->next;
    if (args->merge) {
        if (n < 2) argp_error(state, "--merge: OUT and at least one PART are needed");
        args->out = list[0];
        args->parts = (const char *const *)list + 1;
        args->n_parts = n - 1;
    } else {
        if (n < 2) argp_error(state, "MODEL and OUT are needed");
        if (n > 2) argp_error(state, "MODEL and OUT are enough");
        args->model = list[0];
        args->out = list[1];
    }
    state->next = state->argc;
}

/* What a flag meets in an effort's steps, told without the names of flags that nobody typed. */
static void check_effort(const struct quantize_args *args, struct argp_state *state) {
    if (args->effort < 0) return;
    const char *effort = effort_name((enum effort)args->effort);
    const struct quantize_options *o = &args->o;
    const char *flag = o->blockwise.tweak != TWEAK_NONE ? "--norm-tweak"
                       : o->target != QUANTIZE_WEIGHTS  ? "--target"
                                                        : NULL;
    if (o->layer.method != LAYER_GPTQT)
        argp_error(state, "--effort is a ladder of method gptqt alone");
    if (flag && o->is_static && !quantize_typed_has(&args->typed, "static"))
        argp_error(state,
                   "%s follows the coded blocks, but --effort %s takes the original's inputs here: "
                   "--sequential beside it takes the coded ones",
                   flag, effort);
    if (o->layer.pow2 && o->layer.refine && !quantize_typed_has(&args->typed, "refine"))
        argp_error(state,
                   "--effort %s refines scales off the powers of two of --pow2: --refine 0 beside "
                   "it leaves them",
                   effort);
}

static void check_tune(const struct quantize_args *args, struct argp_state *state) {
    static const char best[] = "(--effort best tunes unless --tune none is there)";
    if (args->tune.o.mode == TUNE_NONE) return;
    if (args->merge) argp_error(state, "--tune does not go with --merge");
    if (args->o.codec != PARTS_PLAIN)
        argp_error(state, "--tune rewrites blocks in place: it does not go with --codec %s", best);
    if (args->o.first_block || args->o.end_block)
        argp_error(state, "--tune needs every block: it does not go with --layers");
    if (args->o.layer.incoherence != LAYER_NATURAL)
        argp_error(state, "--tune cannot pass rotations: it does not go with --incoherence %s",
                   best);
    if (args->o.layer.pow2)
        argp_error(state,
                   "--tune moves scales off the powers of two: it does not go with --pow2 %s",
                   best);
}

static void check(struct quantize_args *args, struct argp_state *state) {
    struct error err;
    struct quantize_options *o = &args->o;
    if (!args->out) argp_error(state, "MODEL and OUT are needed");
    check_effort(args, state);
    if (layer_check(&o->layer, &err) < 0) argp_error(state, "%s", err.text);
    check_tune(args, state);
    if (args->tune.block && !o->blockwise.tune_epochs) o->blockwise.tune_epochs = BLOCKWISE_EPOCHS;
    if (blockwise_check(&o->blockwise, &o->layer, o->is_static, &err) < 0 ||
        quantize_idle_check(args, &err) < 0)
        argp_error(state, "%s", err.text);
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct quantize_args *args = state->input;
    struct error err;
    if (key == ARGP_KEY_INIT) {
        for (int i = 0; i < 3; i++) state->child_inputs[i] = args;
        return 0;
    }
    if (key == ARGP_KEY_ARGS) {
        take_arguments(args, state);
        return 0;
    }
    if (key == ARGP_KEY_END) {
        if (args->effort < 0 || args->over_effort) check(args, state);
        return 0;
    }
    quantize_typed_add(&args->typed, options, key);
    int r = method_option(args, key, value, &err);
    if (r > 0) r = size_option(args, key, value, &err);
    if (r > 0) r = other_option(args, key, value, &err);
    return cli_parsed(r, state, &err);
}

static const struct argp_child children[] = {{&quantize_text_argp, 0, NULL, 3},
                                             {&quantize_block_argp, 0, NULL, 4},
                                             {&quantize_tune_argp, 0, NULL, 5},
                                             {0}};

static const struct argp argp = {
    options,
    parse,
    "MODEL OUT\n--merge OUT PART...",
    "Quantizes a model's linear layers to binary codes.\vMODEL is a directory in Hugging Face form "
    "or "
    "a GGUF file; OUT becomes a checkpoint directory. An interrupted run goes on where it stopped.",
    children,
    NULL,
    NULL};

/* first: the line as it was read without an effort; NULL then. */
static void parse_over(struct quantize_args *args, int argc, char **argv,
                       const struct quantize_args *first, bool tune) {
    *args = (struct quantize_args){
        .argc = argc, .argv = argv, .effort = -1, .over_effort = first != NULL};
    quantize_defaults(&args->o);
    /* Costs nothing measurable: engine/quant/README.md, The output matrix. */
    args->o.output_bits = 8;
    if (first) effort_apply((enum effort)first->effort, &first->o, &args->o);
    if (tune) args->tune.o.mode = TUNE_E2E;
    argp_parse(&argp, argc, argv, 0, NULL, args);
}

/* An effort lies under the flags wherever it stands among them: the line is read again over it, and
 * checked then.
 * The best one tunes where tuning can be. */
void quantize_args_parse(struct quantize_args *ret, int argc, char **argv) {
    argp_err_exit_status = CLI_USAGE;
    struct quantize_args first;
    parse_over(&first, argc, argv, NULL, false);
    *ret = first;
    if (first.effort < 0) return;
    bool whole = !first.merge && !first.o.first_block && !first.o.end_block;
    parse_over(ret, argc, argv, &first, first.effort == EFFORT_BEST && whole);
}
