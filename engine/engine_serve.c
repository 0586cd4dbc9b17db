#include "engine/engine_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine_request.h"
#include "engine/kv.h"

enum {
    ADMIT_BYTES = 64 * 1024 /* of prompts, tokenized between two steps: about 10 ms */
};

void engine_publish(struct engine *e) {
    struct scheduler_stats scheduler;
    scheduler_get_stats(e->scheduler, &scheduler);
    e->stats.running = scheduler.running;
    e->stats.paused = scheduler.paused;
    e->stats.waiting_tokens = scheduler.pending + e->jobs_tokens;
    e->stats.preemptions = scheduler.preemptions;
    e->stats.prefix_queries = scheduler.prefix_queries;
    e->stats.prefix_hits = scheduler.prefix_hits;
    e->stats.kv_blocks = kv_total_blocks(e->kv);
    e->stats.kv_blocks_free = kv_free_blocks(e->kv);
    e->stats.kv_blocks_cached = kv_cached_blocks(e->kv);
    engine_mail_flush(&e->mail, &e->stats);
}

/* -- Admission ------------------------------------------------------------------------------- */

/* Its final event; the job, which may stand in the list still, is an empty shell after that. */
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
    e->places[job->place] = NULL;
    engine_request_free(job->request);
    job->request = NULL;
    engine_mail_post(&e->mail, last);
}

static struct engine_job *next_job(struct engine *e) {
    struct engine_job *job = e->jobs;
    e->jobs = job->next;
    if (!e->jobs) e->jobs_end = &e->jobs;
    e->jobs_tokens -= job->tokens;
    return job;
}

/* The request becomes a sequence in the scheduler's queue. */
static int make_sequence(struct engine *e, struct engine_job *job, struct sequence **ret,
                         struct error *err) {
    struct sequence *seq = NULL;
    size_t n_bytes = engine_mail_prompt_bytes(job->request);
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
    engine_mail_learn(&e->mail, n_bytes, seq->n_prompt);
    if (job->paused) scheduler_pause(e->scheduler, seq->slot, true);
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
    engine_mail_post(&e->mail, last);
}

static int post_started(struct engine *e, const struct sequence *seq) {
    struct engine_event *event = engine_mail_event(0, 0);
    if (!event) return -ENOMEM;
    event->kind = ENGINE_STARTED;
    engine_describe(event, seq);
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
    e->sequences[seq->place] = seq;
    e->owners[seq->slot] = seq;
    r = post_started(e, seq);
    if (r == 0) r = engine_post_text(e, seq); /* the echo */
    if (r < 0) engine_fail(e, seq, r, "out of memory");
}

/* At least one request, so that a stream of long ones is taken too. */
static void admit_some(struct engine *e) {
    if (e->jobs) e->null.next_ns = 0; /* they are on no timetable yet */
    for (size_t bytes = 0; e->jobs && bytes < ADMIT_BYTES;) {
        struct engine_job *job = next_job(e);
        if (job->request) {
            bytes += engine_mail_prompt_bytes(job->request);
            e->places[job->place] = NULL;
            admit(e, job);
        }
        engine_mail_job_free(job);
    }
}

/* -- Mail ------------------------------------------------------------------------------------ */

/* Whatever state the request is in: not admitted, waiting, reading its prompt or generating. */
static void obey(struct engine *e, const struct engine_mark *mark) {
    struct sequence *seq = e->sequences[mark->place];
    struct engine_job *job = e->places[mark->place];
    if (seq && mark->cancelled)
        engine_finish(e, seq, FINISH_CANCELLED);
    else if (seq)
        scheduler_pause(e->scheduler, seq->slot, mark->paused);
    else if (job && mark->cancelled)
        end_job(e, job, 0, "");
    else if (job)
        job->paused = mark->paused;
}

static int64_t earlier(int64_t a, int64_t b) { return b > 0 && b < a ? b : a; }

/* Of a job: it has had neither step nor token. */
static int64_t job_deadline(const struct engine_job *job) {
    const struct engine_claim *c = &job->request->claim;
    return earlier(earlier(earlier(INT64_MAX, c->queue_ns), c->first_ns), c->total_ns);
}

static void append_jobs(struct engine *e, struct engine_job *jobs) {
    *e->jobs_end = jobs;
    for (struct engine_job *job = jobs; job; job = job->next) {
        e->jobs_end = &job->next;
        e->jobs_tokens += job->tokens;
        e->places[job->place] = job;
        e->jobs_deadline_ns = earlier(e->jobs_deadline_ns, job_deadline(job));
        if (job->cancelled) end_job(e, job, 0, "");
    }
}

static void take_mail(struct engine *e, int64_t until_ns, bool *ret_closing) {
    struct engine_mail_news news;
    engine_mail_take(&e->mail, &news, until_ns);
    append_jobs(e, news.jobs);
    if (news.jobs || news.n_marks > 0) e->null.next_ns = 0;
    for (int i = 0; i < news.n_marks; i++) obey(e, &news.marks[i]);
    *ret_closing = news.closing;
}

/* -- Deadlines ------------------------------------------------------------------------------- */

static void expire_job(struct engine *e, struct engine_job *job) {
    const struct engine_claim *c = &job->request->claim;
    int64_t at = job_deadline(job);
    e->stats.timeouts++;
    end_job(e, job, -ETIMEDOUT,
            engine_limit_text(at == c->queue_ns   ? LIMIT_QUEUE
                              : at == c->first_ns ? LIMIT_FIRST
                                                  : LIMIT_TOTAL));
}

static void expire_jobs(struct engine *e, int64_t now_ns) {
    if (now_ns < e->jobs_deadline_ns) return;
    e->jobs_deadline_ns = INT64_MAX;
    for (struct engine_job *job = e->jobs; job; job = job->next) {
        if (!job->request) continue;
        if (job_deadline(job) <= now_ns)
            expire_job(e, job);
        else
            e->jobs_deadline_ns = earlier(e->jobs_deadline_ns, job_deadline(job));
    }
}

/* Before anything is computed for them. */
static void expire(struct engine *e, int64_t now_ns) {
    enum scheduler_limit limit;
    int slot;
    expire_jobs(e, now_ns);
    while ((slot = scheduler_expired(e->scheduler, now_ns, &limit)) >= 0)
        engine_expire(e, e->owners[slot], limit);
}

/* -- The loop -------------------------------------------------------------------------------- */

/* Nothing to compute: there is nothing, or all of it is paused. */
static bool idle(const struct engine *e) {
    struct scheduler_stats stats;
    scheduler_get_stats(e->scheduler, &stats);
    return !e->jobs && stats.running + stats.waiting == stats.paused;
}

/* Until when to wait for mail. */
static int64_t wait_until(const struct engine *e, bool is_idle) {
    int64_t next = is_idle ? ENGINE_MAIL_FOREVER : e->jobs ? 0 : e->null.next_ns;
    return earlier(next, scheduler_deadline(e->scheduler));
}

static void end_all(struct engine *e) {
    for (int i = 0; i < e->capacity; i++)
        if (e->sequences[i]) engine_finish(e, e->sequences[i], FINISH_CANCELLED);
    while (e->jobs) {
        struct engine_job *job = next_job(e);
        if (job->request) end_job(e, job, 0, "");
        engine_mail_job_free(job);
    }
}

void engine_serve(struct engine *e) {
    e->jobs_end = &e->jobs;
    e->jobs_deadline_ns = INT64_MAX;
    for (;;) {
        bool closing;
        engine_publish(e);
        bool was_idle = idle(e);
        take_mail(e, wait_until(e, was_idle), &closing);
        int64_t now = engine_mail_now_ns();
        if (was_idle) e->stats.last_step_ns = now;
        if (closing) break;
        expire(e, now);
        admit_some(e);
        /* Whoever waits to hear that it was admitted need not wait for the step. */
        if (e->mail.posted) engine_publish(e);
        if (now >= e->null.next_ns) engine_step(e);
    }
    end_all(e);
    engine_publish(e);
}
