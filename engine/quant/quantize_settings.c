#include "engine/quant/quantize_state.h"

#include <errno.h>
#include <jansson.h>

#include "engine/config.h"
#include "engine/quant/blockwise.h"
#include "engine/quant/codebook.h"
#include "engine/quant/output.h"
#include "engine/quant/parallel.h"
#include "engine/quant/parts.h"
#include "engine/quant/shard.h"
#include "engine/source.h"
#include "kernels/error.h"

enum { TEXT_CTX = 1024, OWN_CTX = 512, WINDOWS = 64, MAX_WINDOWS = 1 << 16 };

/* About the best on SmolLM2 (README.md, The target). */
static const double target_shares[] = {
    [QUANTIZE_WEIGHTS] = 0.0, [QUANTIZE_OUTPUT] = 0.25, [QUANTIZE_BLOCK] = 0.3};

const char *quantize_method_name(enum layer_method method) {
    static const char *const names[] = {"rtn", "gptq", "bcq", "gptq-bcq", "gptqt"};
    return (size_t)method < sizeof names / sizeof *names ? names[method] : NULL;
}

const char *quantize_kind_name(enum bcq_kind kind) {
    static const char *const names[] = {"", "compact", "compact-group", "free"};
    return (size_t)kind < sizeof names / sizeof *names ? names[kind] : NULL;
}

const char *quantize_weighting_name(enum layer_weighting weighting) {
    static const char *const names[] = {"diag", "none", "u"};
    return (size_t)weighting < sizeof names / sizeof *names ? names[weighting] : NULL;
}

const char *quantize_target_name(enum quantize_target target) {
    static const char *const names[] = {"weights", "output", "block"};
    return (size_t)target < sizeof names / sizeof *names ? names[target] : NULL;
}

const char *quantize_tokens_name(enum moments_tokens tokens) {
    static const char *const names[] = {"equal", "state"};
    return (size_t)tokens < sizeof names / sizeof *names ? names[tokens] : NULL;
}

const char *quantize_moments_name(enum quantize_moments moments) {
    static const char *const names[] = {"auto", "plain", "rounded"};
    return (size_t)moments < sizeof names / sizeof *names ? names[moments] : NULL;
}

const char *quantize_incoherence_name(enum layer_incoherence incoherence) {
    static const char *const names[] = {"none", "input", "both"};
    return (size_t)incoherence < sizeof names / sizeof *names ? names[incoherence] : NULL;
}

const char *quantize_role_name(enum model_role role) {
    static const char *const names[] = {"q", "k", "v", "o", "gate", "up", "down"};
    return (size_t)role < sizeof names / sizeof *names ? names[role] : NULL;
}

void quantize_defaults(struct quantize_options *o) {
    *o = (struct quantize_options){0};
    layer_defaults(&o->layer);
    o->layer.n_threads = 0; /* all processors; a layer on its own is for the caller's thread */
}

static int settle_shard(struct quantize *q, struct error *err) {
    const struct quantize_options *o = &q->o;
    int n = q->config->n_layers;
    q->shard = (struct shard){o->first_block, o->end_block ? o->end_block : n, n};
    int r = shard_check(&q->shard, err);
    if (r == 0 && !shard_is_whole(&q->shard) && !o->is_static)
        r = error_set(err, -EINVAL,
                      "layers: without static inputs a block is quantized on what the "
                      "coded blocks before it give, so it cannot be made on its own");
    if (r == 0 && !shard_is_whole(&q->shard) && sensitivity_wanted(&o->mixed))
        r = error_set(err, -EINVAL,
                      "layers: the bits of a mixed model depend on all of its blocks");
    return r;
}

static int settle_share(struct quantize_options *o, struct error *err) {
    if (o->target == QUANTIZE_WEIGHTS && o->target_share != 0.0)
        return error_set(err, -EINVAL,
                         "target share: it is a share of the way of target output or block");
    if (o->target_share == 0.0) o->target_share = target_shares[o->target];
    if (!(o->target_share >= 0.0 && o->target_share <= 1.0))
        return error_set(err, -EINVAL, "target share: %g is not in 0..1", o->target_share);
    return 0;
}

int quantize_settle(struct quantize *q, struct error *err) {
    struct quantize_options *o = &q->o;
    int r = layer_check(&o->layer, err);
    if (r == 0 && o->codec == PARTS_PVQ && o->layer.kind == BCQ_FREE)
        r = error_set(err, -EINVAL,
                      "codec pvq: params free stores fp16 scales, which are no vectors "
                      "of small integers");
    if (r == 0) r = sensitivity_check(&o->mixed, &o->layer, err);
    if (r == 0 && sensitivity_wanted(&o->mixed) &&
        (o->blockwise.transform != TRANSFORM_NONE || o->blockwise.clip_epochs > 0))
        r = error_set(err, -EINVAL,
                      "mixed: learn-transform and learn-clip fit scales for one number of bits");
    if (r == 0) r = blockwise_check(&o->blockwise, &o->layer, o->is_static, err);
    if (r == 0)
        r = blockwise_check_moments(&o->blockwise, o->target != QUANTIZE_WEIGHTS,
                                    o->tokens != MOMENTS_EQUAL, err);
    if (r < 0) return r;
    o->layer.n_threads = parallel_threads(o->layer.n_threads);
    o->backend.n_threads = o->layer.n_threads;
    /* A checkpoint is the same bytes on a machine with a GPU as on one without. */
    if (!o->backend.name) o->backend.name = "cpu";
    int limit = q->config->max_positions, ctx = o->calibration ? TEXT_CTX : OWN_CTX;
    if (o->ctx == 0) o->ctx = ctx < limit ? ctx : limit;
    if (o->ctx < 2 || o->ctx > limit)
        return error_set(err, -EINVAL, "ctx: %d is not in 2..%d, the model's positions", o->ctx,
                         limit);
    if (o->windows == 0) o->windows = WINDOWS;
    if (o->windows < 1 || o->windows > MAX_WINDOWS)
        return error_set(err, -EINVAL, "windows: %d is not in 1..%d", o->windows, MAX_WINDOWS);
    if (o->target != QUANTIZE_WEIGHTS && o->is_static)
        return error_set(err, -EINVAL,
                         "target: static inputs are the original's own, nothing can differ");
    if (o->target != QUANTIZE_WEIGHTS && o->blockwise.transform != TRANSFORM_NONE)
        return error_set(err, -EINVAL,
                         "target: learn-transform scales inputs, the original's stay");
    r = settle_share(o, err);
    if (r < 0) return r;
    if (o->output_bits == 0) o->output_bits = 16;
    r = output_check(o->output_bits, err);
    if (r < 0) return r;
    if (o->act_bits == 0) o->act_bits = 16;
    if (o->act_bits != 16 && o->act_bits != 8 && o->act_bits != 4)
        return error_set(err, -EINVAL, "act bits: %d is not 16, 8 or 4", o->act_bits);
    if (o->act_bits == 16 && o->moments != QUANTIZE_MOMENTS_DEFAULT)
        return error_set(err, -EINVAL, "act moments: nothing is rounded at 16 act bits");
    if (o->moments == QUANTIZE_MOMENTS_DEFAULT)
        o->moments = o->act_bits == 8 && o->layer.incoherence == LAYER_NATURAL
                         ? QUANTIZE_MOMENTS_ROUNDED
                         : QUANTIZE_MOMENTS_PLAIN;
    if (o->moments == QUANTIZE_MOMENTS_ROUNDED && o->layer.incoherence != LAYER_NATURAL)
        return error_set(
            err, -EINVAL,
            "act moments rounded: with incoherence it is turned inputs that are rounded");
    if (o->moments_folder && !o->is_static)
        return error_set(err, -EINVAL,
                         "moments: only static inputs are the same whatever the codes are");
    if (o->moments_folder && blockwise_wanted(&o->blockwise))
        return error_set(err, -EINVAL,
                         "moments: methods that look at whole blocks need the states as well");
    if (o->state_memory == 0) o->state_memory = (size_t)2 << 30;
    r = settle_shard(q, err);
    if (r < 0) return r;
    for (size_t i = 0; i < source_count(q->src); i++)
        if (source_at(q->src, i)->is_bcq)
            return error_set(err, -ENOTSUP, "tensor '%s': the model is binary-coded already",
                             source_at(q->src, i)->name);
    return 0;
}

static json_t *describe_mixed(const struct sensitivity_options *o) {
    json_t *budget = o->as_bits ? json_string("bits") : json_real(o->budget);
    return json_pack("{s:o, s:s, s:s}", "budget", budget, "by", sensitivity_by_name(o->by), "per",
                     sensitivity_per_name(o->per));
}

json_t *quantize_describe(const struct quantize *q) {
    const struct layer_options *l = &q->o.layer;
    bool compact = l->kind != BCQ_FREE, gptqt = l->method == LAYER_GPTQT;
    json_t *o = json_pack(
        "{s:s, s:s, s:i, s:i, s:s}", "quant_method", "gptqt", "method",
        quantize_method_name(l->method), "bits", l->bits, "group_size", l->group, "params",
        l->kind == BCQ_COMPACT_GROUP ? "compact_group" : quantize_kind_name(l->kind));
    if (!o) return NULL;
    if (compact) json_object_set_new(o, "scale_bits", json_integer(l->scale_bits));
    if (compact) json_object_set_new(o, "bias_bits", json_integer(l->bias_bits));
    if (gptqt) {
        int step = l->step_bits ? l->step_bits : codebook_step_bits(l->bits);
        json_object_set_new(o, "step_bits", json_integer(step));
        json_object_set_new(o, "ranges", json_integer(l->n_ranges));
        json_object_set_new(o, "explore", json_integer(l->explore));
        json_object_set_new(o, "asymmetric", json_boolean(l->asymmetric));
    } else {
        json_object_set_new(o, "min_mse", json_boolean(l->min_mse));
        json_object_set_new(o, "bcq_bias", json_boolean(l->bcq_bias));
    }
    if (l->pow2) json_object_set_new(o, "pow2", json_true());
    json_object_set_new(o, "act_bits", json_integer(q->o.act_bits));
    if (q->o.output_bits < 16)
        json_object_set_new(o, "output_bits", json_integer(q->o.output_bits));
    if (q->o.act_bits < 16)
        json_object_set_new(o, "act_moments", json_string(quantize_moments_name(q->o.moments)));
    json_object_set_new(o, "weighting", json_string(quantize_weighting_name(l->weighting)));
    json_object_set_new(o, "act_order", json_boolean(l->act_order));
    if (l->group_order) json_object_set_new(o, "group_order", json_true());
    json_object_set_new(o, "damp", json_real(l->damp));
    json_object_set_new(o, "codes", json_string(codes_name(l->codes.search)));
    if (l->codes.search == CODES_BEAM || l->codes.search == CODES_ADDITIVE)
        json_object_set_new(o, "beam", json_integer(l->codes.beam));
    json_object_set_new(o, "refine", json_integer(l->refine));
    if (l->incoherence != LAYER_NATURAL)
        json_object_set_new(o, "incoherence",
                            json_string(quantize_incoherence_name(l->incoherence)));
    if (l->outliers > 0.0) json_object_set_new(o, "outliers", json_real(l->outliers));
    if (l->whole_outliers) json_object_set_new(o, "outlier_form", json_string("columns"));
    blockwise_describe(&q->o.blockwise, o);
    if (q->o.codec != PARTS_PLAIN)
        json_object_set_new(o, "codec", json_string(parts_codec_name(q->o.codec)));
    if (sensitivity_wanted(&q->o.mixed))
        json_object_set_new(o, "mixed", describe_mixed(&q->o.mixed));
    json_object_set_new(o, "calibration",
                        json_pack("{s:s, s:i, s:i, s:b}", "text",
                                  q->o.calibration ? "file" : "self-generated", "windows",
                                  q->o.windows, "ctx", q->o.ctx, "static", (int)q->o.is_static));
    json_object_set_new(o, "target", json_string(quantize_target_name(q->o.target)));
    if (q->o.target != QUANTIZE_WEIGHTS)
        json_object_set_new(o, "target_share", json_real(q->o.target_share));
    json_object_set_new(o, "tokens_weigh", json_string(quantize_tokens_name(q->o.tokens)));
    return o;
}
