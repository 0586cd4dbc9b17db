#include "engine/train/windows.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model.h"
#include "engine/quant/calibrate.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/splitmix.h"
#include "engine/text_file.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

enum {
    OWN_WINDOWS = 64, /* of text that the model writes: some 30,000 tokens at 512 */
    MOST_HELD = 8     /* windows that are measured; others of the tenth are left out */
};

static int check_ids(const int32_t *ids, size_t n, int vocab, struct error *err) {
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return error_set(err, -EINVAL, "calibration text: token %d is not in the model's %d",
                             (int)ids[i], vocab);
    return 0;
}

static int read_file(struct windows *w, size_t *ret_n, struct source *src, const char *path,
                     struct error *err) {
    struct tokenizer *tokenizer = NULL;
    char *text = NULL;
    size_t n_text;
    int r = text_file_read(&text, &n_text, path, err);
    if (r == 0) r = source_text_tokenizer(&tokenizer, src, err);
    if (r == 0) r = tokenizer_encode(tokenizer, text, n_text, 0, &w->tokens, ret_n, err);
    if (r == 0) r = check_ids(w->tokens, *ret_n, source_config(src)->vocab, err);
    free(text);
    tokenizer_free(tokenizer);
    return r;
}

static int write_own(struct windows *w, size_t *ret_n, struct source *src,
                     const struct windows_options *o, struct error *err) {
    const struct model_config *c = source_config(src);
    struct backend_options backend_options = {.name = "cpu", .n_threads = o->n_threads};
    struct backend *backend = NULL;
    struct model *model = NULL;
    struct model_options options = {.kv_type = DTYPE_F32,
                                    .max_batch_tokens = CALIBRATE_SEQUENCES,
                                    .max_logit_rows = CALIBRATE_SEQUENCES,
                                    .n_kv_blocks = calibrate_generate_blocks(o->ctx)};
    struct calibrate_text text = {.n_windows = OWN_WINDOWS,
                                  .ctx = o->ctx,
                                  .start = c->bos >= 0 ? c->bos
                                           : c->n_eos  ? c->eos[0]
                                                       : 0,
                                  .seed = o->seed,
                                  .progress = o->progress,
                                  .progress_arg = o->progress_arg};
    *ret_n = OWN_WINDOWS * (size_t)o->ctx;
    w->tokens = malloc(*ret_n * sizeof *w->tokens);
    int r = w->tokens ? 0 : error_set(err, -ENOMEM, "calibration: out of memory");
    if (r == 0) r = backend_open(&backend, &backend_options, err);
    if (r == 0) r = model_open(&model, backend, src, &options, err);
    if (r == 0) r = calibrate_generate(w->tokens, model, &text, err);
    model_close(model);
    backend_close(backend);
    return r;
}

/* The numbers below n in an order of the epoch's own. */
static void shuffle(const struct windows *w, int *order, int n, int epoch) {
    uint64_t state = w->seed ^ (uint64_t)epoch << 32;
    for (int k = 0; k < n; k++) order[k] = k;
    for (int k = n - 1; k > 0; k--) {
        int other = (int)(splitmix_next(&state) % (uint64_t)(k + 1)), kept = order[k];
        order[k] = order[other];
        order[other] = kept;
    }
}

/* Lays the windows to train on out in an order of their own, and after them those that are measured,
 * evenly spread over the tenth at the end: who asks for one soon asks for its neighbours. */
static int mix(struct windows *w, size_t n_all, struct error *err) {
    size_t ctx = (size_t)w->ctx, tenth = n_all / 10 > 0 ? n_all / 10 : 1, n = n_all - tenth;
    size_t held = tenth < MOST_HELD ? tenth : MOST_HELD;
    int32_t *mixed = malloc((n + held) * ctx * sizeof *mixed);
    w->order = malloc(n * sizeof *w->order);
    if (!mixed || !w->order) {
        free(mixed);
        return error_set(err, -ENOMEM, "tune: out of memory");
    }
    shuffle(w, w->order, (int)n, 0);
    for (size_t i = 0; i < n + held; i++) {
        size_t from = i < n ? (size_t)w->order[i] : n + (i - n) * tenth / held;
        memcpy(mixed + i * ctx, w->tokens + from * ctx, ctx * sizeof *mixed);
    }
    free(w->tokens);
    w->tokens = mixed;
    w->n_train = (int)n;
    w->n_held = (int)held;
    return 0;
}

int windows_open(struct windows *ret, struct source *src, const struct windows_options *o,
                 struct error *err) {
    struct windows w = {.ctx = o->ctx, .seed = o->seed};
    size_t n = 0;
    int r = o->calibration ? read_file(&w, &n, src, o->calibration, err)
                           : write_own(&w, &n, src, o, err);
    size_t windows = n / (size_t)o->ctx;
    if (r == 0 && windows < 2)
        r = error_set(err, -EINVAL, "calibration text: %zu tokens, tuning needs two windows of %d",
                      n, o->ctx);
    if (r == 0) r = mix(&w, windows < INT32_MAX ? windows : INT32_MAX, err);
    if (r < 0)
        windows_close(&w);
    else
        *ret = w;
    return r;
}

void windows_close(struct windows *w) {
    free(w->tokens);
    free(w->order);
    *w = (struct windows){0};
}

/* The first epoch takes them as they lie, so that a short run asks the teacher for no group of
 * windows that it does not use up. */
int windows_at(struct windows *w, int64_t i) {
    int n = w->n_train, epoch = (int)(i / n);
    if (epoch == 0) return (int)i;
    if (epoch != w->epoch) shuffle(w, w->order, n, epoch);
    w->epoch = epoch;
    return w->order[i % n];
}
