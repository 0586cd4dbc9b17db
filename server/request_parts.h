/* request_parts.h - what the files that carry requests and write their answers share; no one else
 * includes it.
 *
 * Owns      struct request: everything but the server and the exchange.
 * Borrows   the server; the exchange until it is answered or its client leaves.
 * Thread    the loop's.
 * Fails     into the answer.
 * Cost      that of the answer's bytes.
 *
 * request.c begins requests, request_events.c carries the engine's events to them, request_life.c
 * ends them; none knows what answers look like. An answer_*.c knows one form of answer and not how
 * requests live. struct answer_form is all that lies between. */
#ifndef SERVER_REQUEST_PARTS_H
#define SERVER_REQUEST_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "server/api/api_error.h"
#include "server/api/openai_logprobs.h"
#include "server/api/openai_parse.h"
#include "server/api/openai_render.h"
#include "server/gate.h"
#include "server/text.h"

struct http_exchange;
struct server;

struct choice { /* one request to the engine */
    struct request *request;
    int index; /* prompts times candidates, a prompt's side by side */
    uint64_t ticket;
    bool submitted, ended; /* in the engine */
    bool stepped;          /* when it ended, it had been computed on */
    int n_prompt, n_generated, n_cached;
    int64_t queued_ns, first_ns, text_ns; /* of its first step, first text, last text; 0 = none */
    double logprob_sum;
    int n_logprob;
    struct openai_logprobs logprobs;
    struct text text, logprobs_json; /* what an answer in one piece collects */
    struct text prompt_logprobs;     /* JSON of their list's elements */
    struct text token_ids, prompt_token_ids;
    const char *finish;           /* NULL while it goes on */
    int stop, stop_id;            /* as struct engine_event has them */
    struct engine_event *outcome; /* the last event, for answers that are made of it */
};

struct request;

struct answer_form { /* members that a form does not need are NULL */
    /* Tokens of the prompt with log probabilities have come. */
    void (*prompt)(struct choice *c, const struct engine_event *event);
    /* The first choice of a stream has been admitted: its first events go to x->out. */
    void (*open)(struct choice *c);
    /* Text or tokens; a stream's go to x->out. */
    void (*text)(struct choice *c, const struct engine_event *event);
    /* A stream's choice has ended, c->finish says why. */
    void (*close)(struct choice *c);
    /* All choices have: answer, or write the stream's last events. x is no longer the request's. */
    void (*finish)(struct request *r, struct http_exchange *x);
    /* The open stream ends with this error: its last events. */
    void (*fail)(struct request *r, struct http_exchange *x, const struct api_error *e);
};

extern const struct answer_form answer_completion, answer_chat, answer_response, answer_embedding,
    answer_tokens, answer_explain;

struct request {
    struct server *server;
    struct http_exchange *exchange; /* NULL: the client is gone, or answered */
    const struct answer_form *form;
    struct openai_request *wanted;
    struct choice *choices; /* (n_choices) */
    int n_choices, n_submitted, n_running;
    int width;                              /* choices of each prompt: n, or best_of */
    int asked_width;                        /* of the request that is explained, */
    int64_t guessed_tokens;                 /* and of its prompts */
    char own_id[OPENAI_MAX_ID + 1], id[96]; /* the second is the answer's */
    struct openai_render render;
    struct text head; /* of a stream's chunks */
    int sequence;     /* number of the next typed event */
    struct gate_pass pass;
    bool given_up;                 /* by its client, */
    struct http_exchange *deleter; /* or by this request; NULL */
    int64_t start_ns;
    struct request *prev, *next;
};

/* Makes x the request's and the request one of the server's. */
void request_attach(struct request *r, struct http_exchange *x);
/* Lets go of the exchange; what still runs ends unheard. */
struct http_exchange *request_detach(struct request *r);
/* Ends the client's side with an error; in a stream that has begun it is an event. */
void request_fail(struct request *r, const struct api_error *e);
void request_fail_with(struct request *r, enum api_error_kind kind, const char *message);
/* Frees an attached request that neither a client nor the engine has to do with any more. */
void request_free_if_over(struct request *r);
/* One that was never attached; NULL is allowed. */
void request_free(struct request *r);

/* Hands the next n choices to the engine, or none. */
int request_submit(struct request *r, int n, struct api_error *e);

/* The error that the engine's words mean; they begin with a field: "stop: a string is empty".
 * What the engine calls the prompt has another name in some requests. */
int request_engine_error(struct api_error *e, enum openai_kind kind, int code, const char *message);

/* The answer of /v1/explain; exact: the choices' outcomes have the tokens. */
void request_explain_answer(struct request *r, struct http_exchange *x, bool exact);

/* The prompt of several choices counts once. */
struct openai_usage request_usage(const struct request *r);

#endif
