#include "engine/offline.h"

#include <errno.h>

#include "engine/config.h"
#include "engine/model_backend.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

static int fit_context(struct offline *o, const struct offline_options *options,
                       struct error *err) {
    int limit = source_config(o->source)->max_positions;
    o->context = options->context ? options->context : limit;
    /* Rotary models run past their training length, badly; a table of positions just ends. */
    if (o->context > limit)
        return error_set(err, -E2BIG, "context %d: the model has %d positions", o->context, limit);
    return 0;
}

int offline_open(struct offline *ret, struct source *src, const struct offline_options *options,
                 struct error *err) {
    struct offline o = {.source = src};
    int r = fit_context(&o, options, err);
    if (r == 0 && options->tokenizer) r = source_text_tokenizer(&o.tokenizer, src, err);
    if (r == 0) r = model_backend_open(&o.backend, &options->backend, src, err);
    if (r == 0) {
        struct model_options model = options->model;
        int64_t per_sequence = (o.context + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK;
        int64_t blocks = per_sequence * (options->sequences > 1 ? options->sequences : 1);
        if (blocks > INT32_MAX / BACKEND_KV_BLOCK)
            r = error_set(err, -E2BIG, "context %d times %d sequences: too large", o.context,
                          options->sequences);
        model.n_kv_blocks = (int)blocks;
        if (r == 0) r = model_open(&o.model, o.backend, src, &model, err);
    }
    if (r < 0)
        offline_close(&o);
    else
        *ret = o;
    return r;
}

void offline_close(struct offline *o) {
    model_close(o->model);
    backend_close(o->backend);
    tokenizer_free(o->tokenizer);
    source_close(o->source);
    *o = (struct offline){0};
}
