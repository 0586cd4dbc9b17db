#include "server/quantize_idle.h"

#include <argp.h>
#include <errno.h>
#include <string.h>

#include "engine/quant/layer_options.h"
#include "kernels/error.h"
#include "server/quantize_args.h"

bool quantize_typed_has(const struct quantize_typed *t, const char *name) {
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->names[i], name)) return true;
    return false;
}

void quantize_typed_add(struct quantize_typed *t, const struct argp_option *table, int key) {
    for (const struct argp_option *o = table; o->name || o->doc; o++)
        if (o->name && o->key == key && !quantize_typed_has(t, o->name) &&
            t->n < QUANTIZE_MAX_TYPED)
            t->names[t->n++] = o->name;
}

static bool is_uniform(const struct quantize_args *a) {
    return layer_is_uniform(a->o.layer.method);
}

static bool is_alternating(const struct quantize_args *a) {
    return layer_is_alternating(a->o.layer.method);
}

static bool is_gptqt(const struct quantize_args *a) { return a->o.layer.method == LAYER_GPTQT; }

static bool searches(const struct quantize_args *a) { return is_gptqt(a) && !a->o.layer.pow2; }

static bool weighs(const struct quantize_args *a) { return !is_uniform(a) || a->o.layer.min_mse; }

static bool is_compact(const struct quantize_args *a) { return a->o.layer.kind != BCQ_FREE; }

static bool has_beam(const struct quantize_args *a) {
    enum codes_search search = a->o.layer.codes.search;
    return search == CODES_BEAM || search == CODES_ADDITIVE;
}

static bool mixes(const struct quantize_args *a) { return sensitivity_wanted(&a->o.mixed); }

static bool is_guided(const struct quantize_args *a) {
    return a->o.blockwise.hessian == HESSIAN_GUIDED;
}

static bool tunes(const struct quantize_args *a) { return a->tune.o.mode != TUNE_NONE; }

static bool draws(const struct quantize_args *a) { return !a->o.calibration || tunes(a); }

static const struct rule {
    const char *flag;
    bool (*counts)(const struct quantize_args *args);
    const char *needs;
} rules[] = {
    {"min-mse", is_uniform, "--method gptq or rtn"},
    {"bcq-bias", is_alternating, "--method bcq or gptq-bcq"},
    {"asymmetric", searches, "--method gptqt, without --pow2"},
    {"step-bits", searches, "--method gptqt, without --pow2"},
    {"ranges", is_gptqt, "--method gptqt"},
    {"weighting", weighs, "--min-mse where --method is gptq or rtn"},
    {"scale-bits", is_compact, "--params compact or compact-group"},
    {"bias-bits", is_compact, "--params compact or compact-group"},
    {"beam", has_beam, "--codes beam or additive"},
    {"mixed-by", mixes, "--mixed BUDGET or --mixed bits"},
    {"mixed-per", mixes, "--mixed BUDGET or --mixed bits"},
    {"hessian-groups", is_guided, "--hessian guided"},
    {"tune-steps", tunes, "--tune scales or e2e"},
    {"tune-rate", tunes, "--tune scales or e2e"},
    {"tune-tokens", tunes, "--tune scales or e2e"},
    {"tune-ctx", tunes, "--tune scales or e2e"},
    {"tune-stop-after", tunes, "--tune scales or e2e"},
    {"seed", draws, "a text that the model writes, in place of --calibration, or --tune"},
};

/* Runs that quantize nothing heed a few flags alone. */
static int check_heeded(const struct quantize_typed *t, const char *mode, const char *const *heeded,
                        struct error *err) {
    for (int i = 0; i < t->n; i++) {
        const char *const *name = heeded;
        while (*name && strcmp(*name, t->names[i])) name++;
        if (!*name)
            return error_set(err, -EINVAL, "--%s has no effect with %s, which quantizes nothing",
                             t->names[i], mode);
    }
    return 0;
}

int quantize_idle_check(const struct quantize_args *args, struct error *err) {
    static const char *const merging[] = {"merge", "threads", "cpu-level", "force", "json", NULL};
    static const char *const tuning[] = {
        "tune",      "tune-from",       "tune-steps",  "tune-rate", "tune-tokens",
        "tune-ctx",  "tune-stop-after", "calibration", "seed",      "threads",
        "cpu-level", "force",           "json",        NULL};
    if (args->merge) return check_heeded(&args->typed, "--merge", merging, err);
    if (args->tune.from) return check_heeded(&args->typed, "--tune-from", tuning, err);
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (quantize_typed_has(&args->typed, rules[i].flag) && !rules[i].counts(args))
            return error_set(err, -EINVAL, "--%s has no effect here: it needs %s", rules[i].flag,
                             rules[i].needs);
    return 0;
}
