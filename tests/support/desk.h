/* desk.h - a caller of the engine for tests: submits, collects events, checks their order.
 *
 * Owns      the engine and a record of each request.
 * Borrows   nothing.
 * Thread    one; the engine's wake() is counted under a lock.
 * Fails     fails the running test.
 * Cost      small.
 *
 * Every event is checked as it comes: STARTED once and first, nothing after the final event,
 * tag and ticket right, text whole characters. */
#ifndef TESTS_SUPPORT_DESK_H
#define TESTS_SUPPORT_DESK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"

struct error;
struct source;

enum { DESK_MAX = 512, DESK_TEXT = 4096, DESK_TOKENS = 600 };

struct desk_record {
    uint64_t ticket;
    bool started, ended;
    enum engine_event_kind kind; /* of the final event */
    enum engine_finish finish;
    int code, n_prompt, n_generated, n_events, n_cached;
    int64_t queued_ns, first_ns;
    char text[DESK_TEXT]; /* cut; of FAILED the message */
    size_t text_len;
    int32_t tokens[DESK_TOKENS];
    float logprobs[DESK_TOKENS];
    int n_tokens;
    int stop, stop_id;
    float *vector;               /* (n_vector) */
    int32_t *ids;                /* (n_ids) */
    struct engine_token *prompt; /* (n_prompt_tokens) of ENGINE_PROMPT */
    int n_vector, n_prompt_tokens;
    size_t n_ids;
};

struct desk {
    struct engine *engine;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    int wakes, seen;
    struct desk_record *records; /* (DESK_MAX), index = tag */
    int n_records;
};

/* A small engine on the fake model. */
struct engine_options desk_options(void);

void desk_open(struct desk *d, const struct engine_options *options, int context,
               bool with_tokenizer);
void desk_close(struct desk *d);
/* The same on any source and whatever model is linked. */
void desk_open_source(struct desk *d, const struct engine_options *options, struct source *src);
void desk_close_source(struct desk *d);
enum engine_state desk_wait_loaded(struct desk *d, struct error *err); /* with options.async */

/* The record's number, or the error. Takes request always. */
int desk_submit(struct desk *d, struct engine_request *request);
void desk_cancel(struct desk *d, int record);

void desk_poll(struct desk *d);             /* what is there */
void desk_wait(struct desk *d, int record); /* until it has ended */
void desk_wait_all(struct desk *d);
void desk_wait_started(struct desk *d, int record);

struct engine_request *desk_text(const char *text, int max_tokens);
struct engine_request *desk_ids(const int32_t *ids, int n, int max_tokens);

#endif
