#include "engine/engine.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "engine/engine_request.h"
#include "engine/engine_state.h"
#include "engine/source.h"
#include "engine/tokenizer.h"

/* DESIGN. Two threads: the caller's, usually an event loop, and the engine's, which this file
 * starts. The engine thread opens the back end and the model, because a back end belongs to the
 * thread that opened it, and closes them when it ends. In between it repeats: hand over events,
 * take mail, admit, run one step (engine_serve.c, engine_step.c).
 *
 * The threads share the mail (engine_mail.c: one lock, two queues) and, read-only from the
 * moment that the model is loaded, what the loading left: info, shape, texts. The mail's lock,
 * under which ENGINE_READY is written and read, orders these writes before the caller's first
 * read; for a caller of engine_open() without `async` the semaphore `opened` does. Nothing else
 * crosses over. An engine whose loading failed has no thread any more; it refuses everything
 * until it is closed.
 *
 * Ordering promise: the events of one request come in order, its final event is the last, and by
 * then its slot and blocks are free. Between requests there is no order. */

static int check_options(const struct engine_options *o, struct error *err) {
    if (o->max_running < 1 || o->max_running > 1 << 16)
        return error_set(err, -EINVAL, "max_running: must lie in 1..%d", 1 << 16);
    if (o->max_waiting < 0 || o->max_waiting > 1 << 16)
        return error_set(err, -EINVAL, "max_waiting: must lie in 0..%d", 1 << 16);
    /* Steps of a null engine have a budget of their own. */
    if ((o->step_tokens < o->max_running && !o->null) || o->step_tokens > 1 << 20)
        return error_set(err, -EINVAL, "step_tokens: must lie in %d (max_running)..%d",
                         o->max_running, 1 << 20);
    if (o->max_context < 0 || o->max_context == 1)
        return error_set(err, -EINVAL, "max_context: must be 0 or at least 2");
    if (o->kv_tokens < 0 || o->kv_tokens > INT32_MAX)
        return error_set(err, -EINVAL, "kv_tokens: must lie in 0..%d", INT32_MAX);
    if (o->memory_limit < 0) return error_set(err, -EINVAL, "memory_limit: must not be negative");
    if (!(o->gpu_fraction >= 0 && o->gpu_fraction <= 1))
        return error_set(err, -EINVAL, "gpu_memory_fraction: must be above 0 and at most 1");
    if (o->draft_tokens < 0 || o->draft_tokens > DRAFT_MAX)
        return error_set(err, -EINVAL, "draft_tokens: must lie in 0..%d", DRAFT_MAX);
    if (o->null_token < -1) return error_set(err, -EINVAL, "null_token: must be -1 or more");
    if (!(o->null_rate >= 0 && o->null_rate <= 1e9))
        return error_set(err, -EINVAL, "null_rate: must lie in 0..1e9");
    if (o->n_threads < 0) return error_set(err, -EINVAL, "n_threads: must not be negative");
    return 0;
}

static void tell_state(struct engine *e) {
    engine_mail_flush(&e->mail, &e->stats);
    if (e->options.async && e->options.wake) e->options.wake(e->options.wake_arg);
}

static void *run_thread(void *arg) {
    struct engine *e = arg;
    int r = engine_load(e, &e->open_error);
    if (r < 0) {
        engine_unload(e);
        engine_mail_break(&e->mail, e->open_error.text);
    }
    e->stats.failed = r < 0;
    e->stats.state = r < 0 ? ENGINE_BROKEN : ENGINE_READY;
    tell_state(e);
    /* open_result is the opener's once it is posted: on failure e may be gone after that. */
    e->open_result = r;
    if (!e->options.async) sem_post(&e->opened);
    if (r < 0) return NULL;
    engine_serve(e);
    engine_unload(e);
    return NULL;
}

/* Signals are for the caller's thread. */
static int start_thread(struct engine *e) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&e->thread, NULL, run_thread, e);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -r;
}

static void wait_opened(struct engine *e) {
    while (sem_wait(&e->opened) < 0 && errno == EINTR) continue;
}

/* What is left once the thread is gone, or was never there. */
static void free_engine(struct engine *e) {
    engine_mail_deinit(&e->mail);
    sem_destroy(&e->opened);
    free(e);
}

int engine_open(struct engine **ret, struct source *src, const struct engine_options *options,
                struct error *err) {
    int r = check_options(options, err);
    if (r < 0) return r;
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return error_set(err, -ENOMEM, "engine: out of memory");
    e->options = *options;
    e->src = src;
    e->capacity = options->max_running + options->max_waiting;
    e->stats.max_running = options->max_running;
    e->stats.max_waiting = options->max_waiting;
    e->stats.load_total = (int64_t)source_bytes(src);
    e->stats.last_step_ns = engine_mail_now_ns();
    sem_init(&e->opened, 0, 0);
    r = engine_mail_init(&e->mail, e->capacity, options->wake, options->wake_arg);
    e->mail.stats = e->stats;
    if (r == 0) r = start_thread(e);
    if (r < 0) {
        free_engine(e);
        return error_set(err, r, "engine: cannot start its thread");
    }
    if (options->async) {
        *ret = e;
        return 0;
    }
    wait_opened(e);
    if (e->open_result < 0) {
        r = error_set(err, e->open_result, "%s", e->open_error.text);
        pthread_join(e->thread, NULL);
        free_engine(e);
        return r;
    }
    *ret = e;
    return 0;
}

void engine_close(struct engine *e) {
    if (!e) return;
    engine_mail_close(&e->mail);
    pthread_join(e->thread, NULL);
    source_close(e->src);
    free_engine(e);
}

const struct engine_info *engine_get_info(const struct engine *e) { return &e->info; }

int engine_submit_all(struct engine *e, uint64_t *tickets, struct engine_request **requests, int n,
                      struct error *err) {
    int r = engine_mail_check(&e->mail, err);
    for (int i = 0; i < n && r == 0; i++)
        r = engine_request_check(requests[i], &e->shape, e->max_text, err);
    if (r < 0) return r;
    return engine_mail_submit(&e->mail, tickets, requests, n, err);
}

int engine_submit(struct engine *e, uint64_t *ret_ticket, struct engine_request *request,
                  struct error *err) {
    return engine_submit_all(e, ret_ticket, &request, 1, err);
}

enum engine_state engine_get_state(struct engine *e, struct error *err) {
    return engine_mail_get_state(&e->mail, err);
}

void engine_cancel(struct engine *e, uint64_t ticket) { engine_mail_cancel(&e->mail, ticket); }

void engine_pause(struct engine *e, uint64_t ticket, bool paused) {
    engine_mail_pause(&e->mail, ticket, paused);
}

struct engine_event *engine_poll(struct engine *e) {
    return engine_mail_poll(&e->mail);
}

void engine_get_stats(struct engine *e, struct engine_stats *stats) {
    engine_mail_get_stats(&e->mail, stats);
}

void engine_drain(struct engine *e) { engine_mail_drain(&e->mail); }

int engine_tokenize(const struct engine *e, int32_t **ret_ids, size_t *ret_n, const char *text,
                    size_t n, bool add_special, bool parse_special, struct error *err) {
    if (!e->texts.tokenizer) return error_set(err, -ENOTSUP, "the model has no tokenizer");
    unsigned flags =
        (add_special ? TOKENIZER_ADD_SPECIAL : 0) | (parse_special ? TOKENIZER_PARSE_SPECIAL : 0);
    return tokenizer_encode(e->texts.tokenizer, text, n, flags, ret_ids, ret_n, err);
}

const char *engine_token_text(const struct engine *e, int32_t id, size_t *ret_n) {
    if (!e->texts.tokenizer || id < 0 || id >= tokenizer_vocab_size(e->texts.tokenizer))
        return NULL;
    struct tokenizer_text piece = tokenizer_piece(e->texts.tokenizer, id);
    *ret_n = piece.n;
    return piece.data;
}
