#include "engine/engine_budget.h"

#include <errno.h>

#include "engine/config.h"
#include "engine/engine_state.h"
#include "engine/kv.h"
#include "engine/model.h"
#include "engine/source.h"

enum { MOST_CONTEXTS = 4 /* of max_running: what a pool can use, prefix cache included */ };

static double mib(size_t bytes) { return (double)bytes / 1048576; }

enum dtype engine_budget_kv(const struct engine_options *o) {
    if (o->kv == ENGINE_KV_INT8) return DTYPE_I8;
    return o->kv == ENGINE_KV_F32 ? DTYPE_F32 : DTYPE_F16;
}

size_t engine_budget_work(const struct engine *e, int context) {
    const struct model_config *c = source_config(e->src);
    size_t running = (size_t)e->options.max_running, tokens = (size_t)e->options.step_tokens;
    size_t rows = (size_t)e->n_logit_rows, blocks = (size_t)kv_blocks_for(context);
    size_t queue = (size_t)e->capacity * (sizeof *e->sequences + sizeof *e->owners);
    if (!e->model) return queue + running * sizeof *e->shares;
    size_t step = running * (sizeof *e->shares + sizeof *e->firsts + blocks * sizeof *e->blocks) +
                  tokens * (sizeof *e->tokens + sizeof *e->positions + sizeof *e->seqs);
    size_t in_short = sizeof *e->heats + BACKEND_TOP * sizeof *e->ranks +
                      (size_t)backend_spans(c->vocab) * sizeof *e->sums;
    size_t results =
        rows * (sizeof *e->rows + sizeof *e->best + in_short +
                (size_t)c->vocab * sizeof *e->logits + (size_t)c->embed_dim * sizeof *e->hidden);
    /* The scheduler has a second copy of the block tables. */
    return queue + step + results + running * blocks * sizeof *e->blocks +
           sampler_work_bytes(c->vocab) + model_work_bytes(e->model);
}

int engine_budget_check_weights(const struct engine *e, size_t packed, struct error *err) {
    size_t limit = (size_t)e->options.memory_limit;
    if (limit == 0 || packed <= limit) return 0;
    return error_set(err, -EINVAL,
                     "memory_limit: %.1f MiB, and the first %.1f MiB of weights are more already",
                     mib(limit), mib(packed));
}

static int64_t default_positions(const struct engine *e, int context) {
    int64_t positions = (int64_t)e->options.max_running * (context / 4);
    if (e->options.null && positions > ENGINE_NULL_KV_TOKENS) positions = ENGINE_NULL_KV_TOKENS;
    return positions < context ? context : positions;
}

/* What the limit leaves, in blocks, and an error where that is less than `least` positions. */
static int blocks_left(const struct engine *e, int context, int64_t least, int64_t *ret,
                       struct error *err) {
    enum dtype type = engine_budget_kv(&e->options);
    size_t block = model_kv_block_bytes(source_config(e->src), type);
    size_t limit = (size_t)e->options.memory_limit, weights = model_weight_bytes(e->model);
    size_t work = engine_budget_work(e, context), used = weights + work;
    size_t pool = (size_t)((least + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK) * block;
    if (used > limit || pool > limit - used)
        return error_set(err, -EINVAL,
                         "memory_limit: weights of %.1f MiB, work areas of %.1f MiB and keys and "
                         "values of %lld positions, %.1f MiB, are %.1f MiB; the limit is %.1f MiB",
                         mib(weights), mib(work), (long long)least, mib(pool), mib(used + pool),
                         mib(limit));
    *ret = (int64_t)((limit - used) / block);
    return 0;
}

/* What a pool can use. */
static int64_t most_positions(const struct engine *e, int context) {
    int64_t most = (int64_t)e->options.max_running * MOST_CONTEXTS * context;
    return most < INT32_MAX - BACKEND_KV_BLOCK ? most : INT32_MAX - BACKEND_KV_BLOCK;
}

/* At most as many positions as the device's memory has room for, at least one context. */
static int device_positions(const struct engine *e, int context, const struct backend_memory *m,
                            int64_t *positions, struct error *err) {
    double f = e->options.gpu_fraction > 0 ? e->options.gpu_fraction : ENGINE_GPU_FRACTION;
    size_t block = model_kv_block_bytes(source_config(e->src), engine_budget_kv(&e->options));
    size_t may = (size_t)(f * (double)m->total), taken = m->total - m->free;
    size_t room = may > taken ? may - taken : 0, ours = m->weights + m->kv + m->work;
    size_t least = (size_t)kv_blocks_for(context) * block;
    int64_t blocks = (int64_t)(room / block);
    if (room < least)
        return error_set(
            err, -EINVAL,
            "gpu_memory_fraction: %g of the device's %.1f MiB (it may be above 0, up "
            "to 1) less weights of %.1f MiB, working rooms of %.1f MiB and %.1f MiB of "
            "others leave %.1f MiB, and keys and values of one context of %d positions "
            "take %.1f MiB; max_context and kv_tokens make it less",
            f, mib(m->total), mib(m->weights), mib(m->work), mib(taken > ours ? taken - ours : 0),
            mib(room), context, mib(least));
    if (blocks < *positions / BACKEND_KV_BLOCK) *positions = blocks * BACKEND_KV_BLOCK;
    return 0;
}

/* As many positions as a limit leaves and sequences can use. */
static int limited_positions(const struct engine *e, int context, int64_t *positions,
                             struct error *err) {
    int64_t least = *positions, blocks = 0;
    if (least == 0) least = context < ENGINE_BUDGET_LEAST ? context : ENGINE_BUDGET_LEAST;
    int r = blocks_left(e, context, least, &blocks, err);
    if (r < 0 || *positions > 0) return r;
    int64_t most = most_positions(e, context);
    *positions = blocks > most / BACKEND_KV_BLOCK ? most : blocks * BACKEND_KV_BLOCK;
    return 0;
}

int engine_budget_pool(const struct engine *e, int context, int *ret_blocks, struct error *err) {
    int64_t positions = e->options.kv_tokens;
    struct backend_memory device;
    bool has_device = e->model && backend_get_memory(e->backend, &device);
    if (e->options.memory_limit > 0 && e->model) {
        int r = limited_positions(e, context, &positions, err);
        if (r < 0) return r;
    } else if (positions == 0) {
        positions = has_device ? most_positions(e, context) : default_positions(e, context);
    }
    if (has_device && e->options.kv_tokens == 0) {
        int r = device_positions(e, context, &device, &positions, err);
        if (r < 0) return r;
    }
    /* The back end counts in int; a pool beyond that would not fit into memory either. */
    if (positions < 2 || positions > INT32_MAX - BACKEND_KV_BLOCK)
        return error_set(err, -EINVAL, "kv_tokens: %lld is out of range", (long long)positions);
    *ret_blocks = kv_blocks_for((int)positions);
    return 0;
}
