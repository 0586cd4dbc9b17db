#include "engine/engine_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv.h"

enum {
    ADMIT_BYTES = 64 * 1024, /* of prompts, tokenized between two steps: about 10 ms */
    MESSAGE_BYTES = 32       /* what a chat template puts around a message, about */
};

void engine_publish(struct engine *e) {
    struct scheduler_stats scheduler;
    scheduler_get_stats(e->scheduler, &scheduler);
    e->stats.running = scheduler.running;
    e->stats.preemptions = scheduler.preemptions;
    e->stats.prefix_queries = scheduler.prefix_queries;
    e->stats.prefix_hits = scheduler.prefix_hits;
    e->stats.kv_blocks = kv_total_blocks(e->kv);
    e->stats.kv_blocks_free = kv_free_blocks(e->kv);
    e->stats.kv_blocks_cached = kv_cached_blocks(e->kv);
    engine_mail_flush(&e->mail, &e->stats);
}

/* -- Admission ------------------------------------------------------------------------------- */

static void end_job(struct engine *e, struct engine_job *job, int code, const char *text) {
    struct engine_event *last = job->last;
    job->last = NULL;
    last->kind = code < 0 ? ENGINE_FAILED : ENGINE_DONE;
    last->finish = FINISH_CANCELLED;
    last->code = code;
    last->text_len = strlen(text);
    memcpy(last->text, text, last->text_len);
    if (code < 0)
        e->stats.failures++;
    else
        e->stats.cancelled++;
    engine_mail_job_free(job);
    engine_mail_post(&e->mail, last);
}

/* The request becomes a sequence in the scheduler's queue. */
static int make_sequence(struct engine *e, struct engine_job *job, struct sequence **ret,
                         struct error *err) {
    struct sequence *seq = NULL;
    int r = sequence_new(&seq, &e->shape, job->request, err);
    if (r < 0) return r;
    const struct engine_request *request = seq->request;
    struct scheduler_sequence view = {.ids = &seq->tokens,
                                      .n_tokens = seq->n_prompt,
                                      .n_max = seq->n_max,
                                      .fresh = request->n_prompt_logprobs >= 0 ||
                                               request->task == ENGINE_EMBED,
                                      .claim = request->claim};
    r = scheduler_add(e->scheduler, &seq->slot, &view, err);
    job->request = NULL;
    if (r < 0) {
        sequence_free(seq);
        return r;
    }
    seq->ticket = job->ticket;
    seq->place = job->place;
    seq->last = job->last;
    job->last = NULL;
    *ret = seq;
    return 0;
}

/* The prompt's tokens are the answer; the scheduler does not hear of it. */
static void tokenize(struct engine *e, struct engine_job *job) {
    struct sequence *seq = NULL;
    struct error err;
    int r = sequence_new(&seq, &e->shape, job->request, &err);
    if (r < 0) {
        end_job(e, job, r, err.text);
        return;
    }
    struct engine_event *last = job->last;
    job->request = NULL;
    job->last = NULL;
    last->kind = ENGINE_DONE;
    last->finish = FINISH_STOP;
    last->n_prompt = seq->n_prompt;
    last->n_ids = (size_t)seq->n_prompt;
    last->ids = seq->tokens;
    seq->tokens = NULL;
    e->stats.finished++;
    sequence_free(seq);
    engine_mail_job_free(job);
    engine_mail_post(&e->mail, last);
}

static int post_started(struct engine *e, const struct sequence *seq) {
    struct engine_event *event = engine_mail_event(0, 0);
    if (!event) return -ENOMEM;
    event->kind = ENGINE_STARTED;
    event->ticket = seq->ticket;
    event->tag = seq->request->tag;
    event->n_prompt = seq->n_prompt;
    if (seq->request->return_tokens && seq->n_prompt > 0) {
        size_t bytes = (size_t)seq->n_prompt * sizeof *event->ids;
        event->ids = malloc(bytes);
        if (!event->ids) {
            engine_event_free(event);
            return -ENOMEM;
        }
        memcpy(event->ids, seq->tokens, bytes);
        event->n_ids = (size_t)seq->n_prompt;
    }
    engine_mail_post(&e->mail, event);
    return 0;
}

static void admit(struct engine *e, struct engine_job *job) {
    struct error err;
    struct sequence *seq = NULL;
    if (job->cancelled) {
        end_job(e, job, 0, "");
        return;
    }
    if (job->request->task == ENGINE_TOKENIZE) {
        tokenize(e, job);
        return;
    }
    int r = e->stats.failed ? error_set(&err, -EIO, "the model has failed")
                            : make_sequence(e, job, &seq, &err);
    if (r < 0) {
        end_job(e, job, r, err.text);
        return;
    }
    engine_mail_job_free(job);
    e->sequences[seq->place] = seq;
    e->owners[seq->slot] = seq;
    r = post_started(e, seq);
    if (r == 0) r = engine_post_text(e, seq); /* the echo */
    if (r < 0) engine_fail(e, seq, r, "out of memory");
}

static size_t prompt_bytes(const struct engine_request *request) {
    size_t bytes = request->text_len;
    for (int i = 0; i < request->n_messages; i++)
        bytes += MESSAGE_BYTES + strlen(request->messages[i].content);
    return bytes;
}

/* At least one request, so that a stream of long ones is taken too. */
static void admit_some(struct engine *e) {
    for (size_t bytes = 0; e->jobs && bytes < ADMIT_BYTES;) {
        struct engine_job *job = e->jobs;
        e->jobs = job->next;
        bytes += prompt_bytes(job->request);
        admit(e, job);
    }
}

/* -- Mail ------------------------------------------------------------------------------------ */

/* Whatever state the request is in: not admitted, waiting, reading its prompt or generating. */
static void cancel_place(struct engine *e, int place) {
    if (e->sequences[place]) engine_finish(e, e->sequences[place], FINISH_CANCELLED);
    for (struct engine_job *job = e->jobs; job; job = job->next)
        if (job->place == place) job->cancelled = true;
}

static void take_mail(struct engine *e, int64_t until_ns, bool *ret_closing) {
    struct engine_mail_news news;
    engine_mail_take(&e->mail, &news, until_ns);
    struct engine_job **end = &e->jobs;
    while (*end) end = &(*end)->next;
    *end = news.jobs;
    for (int i = 0; i < news.n_cancelled; i++) cancel_place(e, news.cancelled[i]);
    *ret_closing = news.closing;
}

static bool idle(const struct engine *e) {
    struct scheduler_stats stats;
    scheduler_get_stats(e->scheduler, &stats);
    return !e->jobs && stats.running + stats.waiting == 0;
}

static void end_all(struct engine *e) {
    for (int i = 0; i < e->capacity; i++)
        if (e->sequences[i]) engine_finish(e, e->sequences[i], FINISH_CANCELLED);
    while (e->jobs) {
        struct engine_job *job = e->jobs;
        e->jobs = job->next;
        end_job(e, job, 0, "");
    }
}

void engine_serve(struct engine *e) {
    for (;;) {
        bool closing;
        engine_publish(e);
        bool was_idle = idle(e);
        take_mail(e, was_idle ? ENGINE_MAIL_FOREVER : e->null.next_ns, &closing);
        int64_t now = engine_mail_now_ns();
        if (was_idle) {
            e->stats.last_step_ns = now;
            if (e->options.null) engine_null_start(&e->null, now);
        }
        if (closing) break;
        admit_some(e);
        /* Whoever waits to hear that it was admitted need not wait for the step. */
        if (e->mail.posted) engine_publish(e);
        if (now >= e->null.next_ns) engine_step(e);
    }
    end_all(e);
    engine_publish(e);
}
