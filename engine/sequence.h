/* sequence.h - one generation: its tokens, how the next is chosen, the text they become.
 *
 * Owns      the request, the tokens, sampler, detokenizer and stop strings.
 * Borrows   the shape, until sequence_free(); logits during the call.
 * Thread    engine.
 * Fails     making one: -EINVAL, -E2BIG, -ENOMEM with a text. A token: -ENOMEM.
 * Cost      a token costs the sampler's pass over the vocabulary; the text's buffer is reused.
 *
 * Text and reported tokens stay together: a token is ready once text up to its beginning is
 * released, so tokens of a stop string that cut the text are never reported. */
#ifndef ENGINE_SEQUENCE_H
#define ENGINE_SEQUENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/buf.h"
#include "engine/detok.h"
#include "engine/draft.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/stop.h"

struct chat_template;
struct error;
struct tokenizer;

/* What all sequences of a model have in common. */
struct sequence_shape {
    int context, vocab;
    const int32_t *ends; /* (n_ends) tokens that end a generation */
    int n_ends;
    const struct tokenizer *tokenizer; /* NULL: ids only */
    const struct chat_template *chat;  /* NULL: no chats, for chat_reason */
    const char *chat_reason;
    const char *bos, *eos; /* texts for the chat template; NULL = "" */
};

struct sequence {
    const struct sequence_shape *shape;
    struct engine_request *request;
    uint64_t ticket;
    int place, slot;             /* see engine_state.h */
    int n_cached;                /* of the prompt, found computed; the scheduler says */
    int64_t queued_ns, first_ns; /* of the first step and token; 0 = not yet */
    int64_t due_ns;              /* of the null engine: when it gets its next token */
    struct engine_event *last;   /* the engine's final event for it */

    int32_t *tokens; /* (n_tokens) known: the prompt, then what was generated */
    int n_tokens, n_prompt, n_max, capacity;
    struct sampler sampler;

    int32_t *ends; /* (n_ends) tokens that end this one: the model's and the request's */
    int n_ends;

    bool ended;
    enum engine_finish finish; /* once ended */
    int32_t stop_id;           /* the end token that was met, or -1 */

    struct engine_event *scores; /* ENGINE_PROMPT while it is filled; NULL before and after */
    bool scored;                 /* it has been posted */
    double *pooled;              /* (embed_dim) sums of hidden states; NULL: none wanted or yet */
    int n_pooled;                /* of the prompt's positions */

    struct draft draft;
    int32_t guesses[DRAFT_MAX]; /* of the step that is being put together */
    int n_guesses;              /* to be asked for */
    int pause, guess_from;      /* tokens to wait after a miss; n_tokens at which it ends */

    struct detok detok;
    struct stop stop;
    struct buf piece;                         /* of one token, between detok and stop */
    struct buf text;                          /* released and not taken */
    uint64_t n_released;                      /* bytes of generated text released so far */
    struct sequence_token *reports;           /* (n_reports) tokens to report and not taken */
    int n_reports, n_ready, reports_capacity; /* the first n_ready can be taken */
};

struct sequence_token {
    uint64_t at; /* where its text begins in the generated text */
    struct engine_token token;
};

/* Renders and tokenizes the prompt. With echo its text is there to be taken. Takes request on
 * success. */
int sequence_new(struct sequence **ret, const struct sequence_shape *shape,
                 struct engine_request *request, struct error *err);
void sequence_free(struct sequence *s); /* NULL is allowed */

/* Chooses the next token and deals with it. logits: (vocab) */
int sequence_sample(struct sequence *s, struct sampler_work *work, const float *logits);

/* What is told of a token. */
struct engine_token sequence_token(const struct sequence *s, const struct sampler_result *token);

/* Best tokens to report with each, as n_top in struct sampler_call. */
int sequence_n_top(const struct sequence *s);

/* The best token it is, and nothing else is asked for. */
bool sequence_takes_best(const struct sequence *s);

/* The model's logits alone decide, and nothing else is asked for. */
bool sequence_takes_short(const struct sequence *s);

/* One more token, wherever it comes from. */
int sequence_push(struct sequence *s, const struct sampler_result *token);

/* Ends it from outside: text that was held back is released. */
int sequence_end(struct sequence *s, enum engine_finish finish);

/* The text and the ready tokens have been taken. */
void sequence_taken(struct sequence *s);

/* No token is wanted after the prompt. */
static inline bool sequence_is_prompt(const struct sequence *s) {
    return s->request->task != ENGINE_GENERATE || s->request->max_tokens < 0;
}

static inline int sequence_generated(const struct sequence *s) { return s->n_tokens - s->n_prompt; }

#endif
