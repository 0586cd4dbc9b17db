/* engine_state.h - what the parts of the engine share.
 *
 * Owns      everything a loaded model needs while it serves.
 * Borrows   options' strings and wake_arg as engine.h says.
 * Thread    engine, save for the parts that are fixed once it is ready (info, shape, tokenizer)
 *           and the mail.
 * Fails     as stated below.
 * Cost      one step costs what the model costs; arrays are sized at opening.
 *
 * sequences[place] and owners[slot] name the same objects: place is the row of the ticket in the
 * mail, slot the scheduler's number. */
#ifndef ENGINE_ENGINE_STATE_H
#define ENGINE_ENGINE_STATE_H

#include <pthread.h>
#include <semaphore.h>

#include "engine/engine.h"
#include "engine/engine_mail.h"
#include "engine/engine_null.h"
#include "engine/engine_texts.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "kernels/backend.h"
#include "kernels/error.h"

struct kv_pool;
struct model;

/* Sums that fade, so that their quotients tell of the last steps. */
struct engine_rates {
    double prompt_tokens, prompt_seconds; /* of steps with prompts */
    double steps, step_seconds;           /* of the others */
};

struct engine {
    struct engine_options options; /* checked; zeros replaced */
    struct source *src;
    struct engine_mail mail;
    pthread_t thread;
    sem_t opened; /* posted by the thread, once; unused with options.async */

    /* Written by the thread before it says ENGINE_READY, by nobody after: */
    int open_result;
    struct error open_error;
    struct error over_budget; /* why the loading was stopped; empty: it was not */
    struct engine_info info;
    char backend_text[160];
    struct engine_texts texts;
    struct sequence_shape shape; /* what all sequences have in common */
    size_t max_text;             /* bytes of a prompt that cannot fit, at least */
    int capacity;                /* max_running + max_waiting */

    /* The engine thread's: */
    struct engine_null null; /* with options.null; then there is no back end and no model */
    struct backend *backend;
    struct model *model;
    struct kv_pool *kv;
    struct scheduler *scheduler;
    struct sampler_work *work;
    struct engine_job *jobs, **jobs_end; /* taken from the mail, not admitted, oldest first */
    struct engine_job **places;          /* (capacity) those of them that have not ended */
    int64_t jobs_deadline_ns;            /* none of them misses a deadline before */
    int64_t jobs_tokens;                 /* of their prompts, estimated */
    struct sequence **sequences;         /* (capacity) by place; NULL = none */
    struct sequence **owners;            /* (capacity) by slot */
    struct engine_stats stats;
    struct engine_rates rates;

    /* One step, filled anew each time: */
    struct scheduler_share *shares; /* (max_running) */
    int32_t *tokens;                /* (step_tokens) */
    int32_t *positions;             /* (step_tokens) */
    int32_t *seqs;                  /* (step_tokens) */
    int32_t *blocks;                /* (max_running, blocks of a full context) at most */
    int *firsts;                    /* (max_running) where the tokens of each share begin */
    int32_t *rows;                  /* (n_logit_rows) */
    int32_t *best;                  /* (n_logit_rows) or, where the device chooses, ids */
    float *heats;                   /* (n_logit_rows) or, where it tells rows in short: */
    uint64_t *ranks;                /* (n_logit_rows, BACKEND_TOP) */
    uint64_t *sums;                 /* (n_logit_rows, backend_spans(vocab)) */
    float *logits;                  /* (n_logit_rows, vocab) */
    float *hidden;                  /* (n_logit_rows, embed_dim) */
    int n_logit_rows;               /* results read at a time */
};

/* Loads and frees everything that is the engine thread's; both run on it. unload takes a
 * half-loaded engine. */
int engine_load(struct engine *e, struct error *err);
void engine_unload(struct engine *e);

/* Hands posted events and figures to the caller's side. */
void engine_publish(struct engine *e);

/* Serves until the mail is closed; every request has got its final event then. */
void engine_serve(struct engine *e);

/* Runs what the scheduler asks for and deals with the new tokens. */
void engine_step(struct engine *e);

/* Ends a sequence with a final event: text that it still holds, then DONE; or FAILED. */
void engine_finish(struct engine *e, struct sequence *seq, enum engine_finish finish);
void engine_fail(struct engine *e, struct sequence *seq, int code, const char *text);
/* That deadline has passed. */
void engine_expire(struct engine *e, struct sequence *seq, enum scheduler_limit limit);
const char *engine_limit_text(enum scheduler_limit limit);

/* What every event of a sequence says. */
void engine_describe(struct engine_event *event, const struct sequence *seq);

/* Posts the text and tokens that seq has ready; -ENOMEM. */
int engine_post_text(struct engine *e, struct sequence *seq);

#endif
