/* engine_mail.h - carries requests to the engine thread and events back.
 *
 * Owns      jobs until they are taken, events until they are polled, the table of tickets.
 * Borrows   the wake function's argument until deinit.
 * Thread    first group below: any thread; second: the engine thread.
 * Fails     submit, as engine_submit() does; nothing that the engine thread calls can fail.
 * Cost      a short lock; posting an event takes none.
 *
 * Every ticket that was given out ends with one final event (ENGINE_DONE or ENGINE_FAILED); its
 * memory is set aside at submission, so that running out of memory can be reported. */
#ifndef ENGINE_ENGINE_MAIL_H
#define ENGINE_ENGINE_MAIL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "kernels/error.h"

/* A submitted request on its way to the engine thread. */
struct engine_job {
    struct engine_job *next;
    uint64_t ticket;
    int place;              /* below the capacity, its own until the final event is flushed */
    bool cancelled, paused; /* known before it was taken */
    int64_t tokens;         /* of its prompt, estimated */
    struct engine_request *request;
    struct engine_event *last; /* the final event, to be filled and posted */
};

struct engine_mail_entry {
    uint64_t ticket; /* 0 = free */
    bool cancelled, paused;
    bool marked; /* its row is in marked, whoever's it is by then */
};

/* A row whose cancelled or paused has changed, and what they are now. */
struct engine_mark {
    int place;
    bool cancelled, paused;
};

struct engine_mail {
    /* Under the lock: */
    pthread_mutex_t lock;
    pthread_cond_t news; /* jobs, cancellations or closing came */
    struct engine_job *jobs, **jobs_end;
    struct engine_event *events, **events_end;
    struct engine_mail_entry *table; /* (capacity) */
    int *free_places;                /* (capacity) a stack of capacity - n_used rows */
    int n_used;
    uint64_t serial; /* of the last ticket */
    int *marked;     /* (capacity) n_marked rows */
    int n_marked;
    bool closing;
    int64_t tokens, taken_tokens; /* of prompts: in jobs; taken and not in stats yet */
    double token_bytes;           /* of a text */
    struct engine_stats stats;
    struct error broken; /* why stats.state is ENGINE_BROKEN */

    /* The engine thread's: */
    struct engine_event *posted, **posted_end; /* not flushed */
    struct engine_mark *marks;                 /* (capacity) of the last take */
    double seen_token_bytes;                   /* lately, in what was tokenized */

    /* Fixed: */
    int capacity;
    void (*wake)(void *arg);
    void *wake_arg;
};

#define ENGINE_MAIL_FOREVER INT64_MAX /* a time that does not come */

/* What has come for the engine thread. */
struct engine_mail_news {
    struct engine_job *jobs;         /* oldest first; the taker's */
    const struct engine_mark *marks; /* (n_marks) valid until the next take */
    int n_marks;
    bool closing;
};

/* capacity: requests in flight at most. */
int engine_mail_init(struct engine_mail *m, int capacity, void (*wake)(void *arg), void *wake_arg);
void engine_mail_deinit(struct engine_mail *m); /* a zeroed one is allowed */

/* -- Any thread ------------------------------------------------------------------------------ */

/* All or none; takes the requests on success, tickets: (n). */
int engine_mail_submit(struct engine_mail *m, uint64_t *tickets, struct engine_request **requests,
                       int n, struct error *err);
void engine_mail_cancel(struct engine_mail *m, uint64_t ticket);
void engine_mail_pause(struct engine_mail *m, uint64_t ticket, bool paused);
struct engine_event *engine_mail_poll(struct engine_mail *m);
void engine_mail_get_stats(struct engine_mail *m, struct engine_stats *stats);
enum engine_state engine_mail_get_state(struct engine_mail *m, struct error *err);
/* Whether requests are taken at all, however full the queue is; fails as submit does. What the
 * engine thread wrote before it flushed ENGINE_READY can be read after success. */
int engine_mail_check(struct engine_mail *m, struct error *err);
void engine_mail_drain(struct engine_mail *m);
void engine_mail_close(struct engine_mail *m);

/* -- The engine thread ----------------------------------------------------------------------- */

/* Takes what has come; waits for something until that time, 0 or past: not at all. */
void engine_mail_take(struct engine_mail *m, struct engine_mail_news *news, int64_t until_ns);
void engine_mail_job_free(struct engine_job *job); /* NULL is allowed */
bool engine_mail_closing(struct engine_mail *m);   /* nobody will wait for what is begun */

/* The next flush says ENGINE_BROKEN: this is why. */
void engine_mail_break(struct engine_mail *m, const char *text);

/* n_bytes of prompts have become n_tokens: what submit estimates by. */
void engine_mail_learn(struct engine_mail *m, size_t n_bytes, int n_tokens);

/* Takes event. It stays here until the flush. */
void engine_mail_post(struct engine_mail *m, struct engine_event *event);
/* Hands over what was posted, with the engine's own figures, and wakes the other side once. */
void engine_mail_flush(struct engine_mail *m, const struct engine_stats *stats);

/* An event in one piece of memory with room for text_size bytes of text and n_tokens tokens; the
 * counts start at 0. NULL: no memory. */
struct engine_event *engine_mail_event(size_t text_size, int n_tokens);

/* Of the prompt's text, about. */
size_t engine_mail_prompt_bytes(const struct engine_request *request);

/* CLOCK_MONOTONIC, of which engine_stats has its times. */
int64_t engine_mail_now_ns(void);

#endif
