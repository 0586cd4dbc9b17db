#include "engine/engine_mail.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* DESIGN. Two threads meet here and nowhere else: the caller's and the engine's.
 *
 * Queues: jobs (caller to engine) and events (engine to caller), both linked lists that the
 * receiver takes whole. A cancellation is a mark in the table of tickets, so it cannot fail for
 * want of memory and costs nothing for tickets that have ended. The table has a row for each
 * request in flight, from submit to the flush of the final event, and thereby bounds the queue.
 *
 * Lock: one, over everything in the first part of struct engine_mail. It is held for pointer
 * work and for walks over the table or the posted events; never while allocating, computing or
 * calling wake(). No other lock is taken under it.
 *
 * Order: a request's events arrive in the order they were posted, its final event last. Requests
 * are taken in the order of submission. A cancellation sent after its submission is seen with it
 * or later, never before. */

enum {
    TOKEN_BYTES = 4,   /* of English, before anything has been seen */
    MESSAGE_BYTES = 32 /* what a chat template puts around a message, about */
};

int64_t engine_mail_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Its waits end by CLOCK_MONOTONIC. */
static int init_news(struct engine_mail *m) {
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0) return -ENOMEM;
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    int r = pthread_cond_init(&m->news, &attr);
    pthread_condattr_destroy(&attr);
    return -r;
}

static void free_rows(struct engine_mail *m) {
    free(m->marks);
    free(m->marked);
    free(m->free_places);
    m->marks = NULL;
    m->marked = m->free_places = NULL;
}

int engine_mail_init(struct engine_mail *m, int capacity, void (*wake)(void *arg), void *wake_arg) {
    *m = (struct engine_mail){.capacity = capacity,
                              .wake = wake,
                              .wake_arg = wake_arg,
                              .token_bytes = TOKEN_BYTES,
                              .seen_token_bytes = TOKEN_BYTES};
    m->jobs_end = &m->jobs;
    m->events_end = &m->events;
    m->posted_end = &m->posted;
    struct engine_mail_entry *table = calloc((size_t)capacity, sizeof *table);
    m->marks = calloc((size_t)capacity, sizeof *m->marks);
    m->marked = calloc((size_t)capacity, sizeof *m->marked);
    m->free_places = calloc((size_t)capacity, sizeof *m->free_places);
    if (!table || !m->marks || !m->marked || !m->free_places) goto fail;
    if (pthread_mutex_init(&m->lock, NULL) != 0) goto fail;
    if (init_news(m) != 0) {
        pthread_mutex_destroy(&m->lock);
        goto fail;
    }
    for (int i = 0; i < capacity; i++) m->free_places[i] = capacity - 1 - i;
    m->table = table;
    return 0;
fail:
    free(table);
    free_rows(m);
    return -ENOMEM;
}

static void free_events(struct engine_event *event) {
    while (event) {
        struct engine_event *next = event->next;
        engine_event_free(event);
        event = next;
    }
}

static void free_jobs(struct engine_job *job) {
    while (job) {
        struct engine_job *next = job->next;
        engine_mail_job_free(job);
        job = next;
    }
}

void engine_mail_deinit(struct engine_mail *m) {
    if (!m->table) return;
    free_jobs(m->jobs);
    free_events(m->events);
    free_events(m->posted);
    pthread_cond_destroy(&m->news);
    pthread_mutex_destroy(&m->lock);
    free(m->table);
    free_rows(m);
    m->table = NULL;
}

/* -- Any thread ------------------------------------------------------------------------------ */

static int refuse_all(const struct engine_mail *m, struct error *err) {
    if (m->stats.state == ENGINE_BROKEN)
        return error_set(err, -EIO, "the model has failed: %s", m->broken.text);
    if (m->stats.draining || m->closing)
        return error_set(err, -ESHUTDOWN, "the engine takes no new requests");
    if (m->stats.state == ENGINE_LOADING) return error_set(err, -EBUSY, "the model is loading");
    return 0;
}

static int refuse(const struct engine_mail *m, int n, struct error *err) {
    int r = refuse_all(m, err);
    if (r < 0) return r;
    if (n > m->capacity - m->n_used)
        return error_set(err, -EAGAIN, "%d requests are in flight already", m->n_used);
    return 0;
}

/* A ticket names its row: serial * capacity + row, with serials from 1 so that 0 is none. */
static void give_place(struct engine_mail *m, struct engine_job *job) {
    int place = job->place = m->free_places[m->capacity - m->n_used - 1];
    job->ticket = ++m->serial * (uint64_t)m->capacity + (uint64_t)place;
    m->table[place].ticket = job->ticket;
    /* The heartbeat of an idle engine is old; it counts from its first request on. */
    if (m->n_used++ == 0) m->stats.last_step_ns = engine_mail_now_ns();
    m->stats.requests++;
}

/* Tokens of the prompt, before anybody has tokenized it. */
static int64_t estimate(const struct engine_mail *m, const struct engine_request *request) {
    int64_t tokens = (int64_t)request->n_ids, limit = request->truncate_prompt;
    if (request->task == ENGINE_TOKENIZE) return 0;
    if (!request->ids)
        tokens = 1 + (int64_t)((double)engine_mail_prompt_bytes(request) / m->token_bytes);
    return limit > 0 && tokens > limit ? limit : tokens;
}

static struct engine_job *new_job(uint64_t tag) {
    struct engine_job *job = calloc(1, sizeof *job);
    struct engine_event *last = engine_mail_event(sizeof(struct error), 0);
    if (!job || !last) {
        free(job);
        engine_event_free(last);
        return NULL;
    }
    job->last = last;
    last->tag = tag;
    return job;
}

int engine_mail_submit(struct engine_mail *m, uint64_t *tickets, struct engine_request **requests,
                       int n, struct error *err) {
    struct engine_job *jobs = NULL, **end = &jobs;
    for (int i = 0; i < n; i++) {
        *end = new_job(requests[i]->tag);
        if (!*end) {
            free_jobs(jobs);
            return error_set(err, -ENOMEM, "request: out of memory");
        }
        end = &(*end)->next;
    }
    if (n < 1) return 0;

    pthread_mutex_lock(&m->lock);
    int r = refuse(m, n, err);
    if (r == 0) {
        struct engine_job *job = jobs;
        for (int i = 0; i < n; i++, job = job->next) {
            give_place(m, job);
            job->request = requests[i];
            job->tokens = estimate(m, requests[i]);
            m->tokens += job->tokens;
            tickets[i] = job->last->ticket = job->ticket;
        }
        *m->jobs_end = jobs;
        m->jobs_end = end;
        pthread_cond_signal(&m->news);
    }
    pthread_mutex_unlock(&m->lock);
    if (r < 0) free_jobs(jobs);
    return r;
}

/* The row of a ticket that has not ended, or NULL. */
static struct engine_mail_entry *find(struct engine_mail *m, uint64_t ticket) {
    struct engine_mail_entry *entry = &m->table[ticket % (uint64_t)m->capacity];
    return ticket != 0 && entry->ticket == ticket ? entry : NULL;
}

static void mark(struct engine_mail *m, struct engine_mail_entry *entry) {
    if (!entry->marked) m->marked[m->n_marked++] = (int)(entry - m->table);
    entry->marked = true;
    pthread_cond_signal(&m->news);
}

void engine_mail_cancel(struct engine_mail *m, uint64_t ticket) {
    pthread_mutex_lock(&m->lock);
    struct engine_mail_entry *entry = find(m, ticket);
    if (entry && !entry->cancelled) {
        entry->cancelled = true;
        mark(m, entry);
    }
    pthread_mutex_unlock(&m->lock);
}

void engine_mail_pause(struct engine_mail *m, uint64_t ticket, bool paused) {
    pthread_mutex_lock(&m->lock);
    struct engine_mail_entry *entry = find(m, ticket);
    if (entry && entry->paused != paused) {
        entry->paused = paused;
        mark(m, entry);
    }
    pthread_mutex_unlock(&m->lock);
}

struct engine_event *engine_mail_poll(struct engine_mail *m) {
    pthread_mutex_lock(&m->lock);
    struct engine_event *events = m->events;
    m->events = NULL;
    m->events_end = &m->events;
    pthread_mutex_unlock(&m->lock);
    return events;
}

void engine_mail_get_stats(struct engine_mail *m, struct engine_stats *stats) {
    pthread_mutex_lock(&m->lock);
    *stats = m->stats;
    /* What is not running waits: in the mail, in the scheduler's queue, or preempted. */
    stats->waiting = m->n_used - m->stats.running;
    stats->waiting_tokens += m->tokens + m->taken_tokens;
    stats->ready = stats->state == ENGINE_READY && !stats->draining && !m->closing;
    pthread_mutex_unlock(&m->lock);
}

enum engine_state engine_mail_get_state(struct engine_mail *m, struct error *err) {
    pthread_mutex_lock(&m->lock);
    enum engine_state state = m->stats.state;
    if (state == ENGINE_BROKEN) error_set(err, 0, "%s", m->broken.text);
    pthread_mutex_unlock(&m->lock);
    return state;
}

int engine_mail_check(struct engine_mail *m, struct error *err) {
    pthread_mutex_lock(&m->lock);
    int r = refuse_all(m, err);
    pthread_mutex_unlock(&m->lock);
    return r;
}

void engine_mail_drain(struct engine_mail *m) {
    pthread_mutex_lock(&m->lock);
    m->stats.draining = true;
    pthread_mutex_unlock(&m->lock);
}

void engine_mail_close(struct engine_mail *m) {
    pthread_mutex_lock(&m->lock);
    m->closing = true;
    pthread_cond_signal(&m->news);
    pthread_mutex_unlock(&m->lock);
}

/* -- The engine thread ----------------------------------------------------------------------- */

/* Returns at news or at until_ns. */
static void wait_news(struct engine_mail *m, int64_t until_ns) {
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    int r = 0;
    while (r == 0 && until_ns > 0 && !m->jobs && m->n_marked == 0 && !m->closing)
        r = until_ns == ENGINE_MAIL_FOREVER ? pthread_cond_wait(&m->news, &m->lock)
                                            : pthread_cond_timedwait(&m->news, &m->lock, &until);
}

static void take_marks(struct engine_mail *m, struct engine_mail_news *news) {
    for (int i = 0; i < m->n_marked; i++) {
        int place = m->marked[i];
        struct engine_mail_entry *entry = &m->table[place];
        entry->marked = false;
        if (entry->ticket == 0) continue;
        m->marks[news->n_marks++] = (struct engine_mark){
            .place = place, .cancelled = entry->cancelled, .paused = entry->paused};
    }
    m->n_marked = 0;
}

void engine_mail_take(struct engine_mail *m, struct engine_mail_news *news, int64_t until_ns) {
    *news = (struct engine_mail_news){.marks = m->marks};
    pthread_mutex_lock(&m->lock);
    wait_news(m, until_ns);
    news->jobs = m->jobs;
    news->closing = m->closing;
    m->jobs = NULL;
    m->jobs_end = &m->jobs;
    for (struct engine_job *job = news->jobs; job; job = job->next) {
        job->cancelled = m->table[job->place].cancelled;
        job->paused = m->table[job->place].paused;
    }
    take_marks(m, news);
    m->taken_tokens += m->tokens;
    m->tokens = 0;
    pthread_mutex_unlock(&m->lock);
}

void engine_mail_job_free(struct engine_job *job) {
    if (!job) return;
    engine_request_free(job->request);
    engine_event_free(job->last);
    free(job);
}

bool engine_mail_closing(struct engine_mail *m) {
    pthread_mutex_lock(&m->lock);
    bool closing = m->closing;
    pthread_mutex_unlock(&m->lock);
    return closing;
}

void engine_mail_break(struct engine_mail *m, const char *text) {
    pthread_mutex_lock(&m->lock);
    error_set(&m->broken, 0, "%s", text);
    pthread_mutex_unlock(&m->lock);
}

size_t engine_mail_prompt_bytes(const struct engine_request *request) {
    size_t bytes = request->text_len;
    for (int i = 0; i < request->n_messages; i++)
        bytes += MESSAGE_BYTES + strlen(request->messages[i].content);
    return bytes;
}

void engine_mail_learn(struct engine_mail *m, size_t n_bytes, int n_tokens) {
    if (n_bytes < 1 || n_tokens < 1) return;
    /* A long prompt says more; about 16 KB of texts change half of it. */
    double share = 1 / (1 + 16384.0 / (double)n_bytes);
    double seen = (double)n_bytes / n_tokens;
    m->seen_token_bytes += share * (seen - m->seen_token_bytes);
}

void engine_mail_post(struct engine_mail *m, struct engine_event *event) {
    event->next = NULL;
    *m->posted_end = event;
    m->posted_end = &event->next;
}

/* Frees the rows of requests that end with these events. */
static void end_tickets(struct engine_mail *m, const struct engine_event *event) {
    for (; event; event = event->next) {
        if (event->kind != ENGINE_DONE && event->kind != ENGINE_FAILED) continue;
        int place = (int)(event->ticket % (uint64_t)m->capacity);
        m->table[place] = (struct engine_mail_entry){.marked = m->table[place].marked};
        m->n_used--;
        m->free_places[m->capacity - m->n_used - 1] = place;
    }
}

void engine_mail_flush(struct engine_mail *m, const struct engine_stats *stats) {
    bool any = m->posted != NULL;
    pthread_mutex_lock(&m->lock);
    struct engine_stats ours = m->stats;
    m->stats = *stats;
    m->stats.requests = ours.requests;
    m->taken_tokens = 0; /* they are in these figures */
    m->token_bytes = m->seen_token_bytes;
    m->stats.draining = ours.draining;
    if (any) {
        end_tickets(m, m->posted);
        *m->events_end = m->posted;
        m->events_end = m->posted_end;
    }
    pthread_mutex_unlock(&m->lock);
    m->posted = NULL;
    m->posted_end = &m->posted;
    if (any && m->wake) m->wake(m->wake_arg);
}

struct engine_event *engine_mail_event(size_t text_size, int n_tokens) {
    size_t tokens_size = (size_t)n_tokens * sizeof(struct engine_token);
    struct engine_event *event = calloc(1, sizeof *event + tokens_size + text_size + 1);
    if (!event) return NULL;
    event->stop = event->stop_id = -1;
    event->tokens = (struct engine_token *)(event + 1);
    event->text = (char *)(event + 1) + tokens_size;
    return event;
}

void engine_event_free(struct engine_event *event) {
    if (!event) return;
    free(event->vector);
    free(event->ids);
    free(event);
}
