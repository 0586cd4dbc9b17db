/* gate.h - lets requests in: who asks, within which quota, whether there is room, until when.
 *
 * Owns      nothing; struct gate_pass lives in the request.
 * Borrows   server, exchange and request during the call.
 * Thread    the loop's.
 * Fails     with an api_error; where asking again makes sense it says when.
 * Cost      O(keys) for who asks, else O(1).
 *
 * It is asked twice: gate_look() when the headers are in, so that a refusal costs no body and no
 * parsing; gate_enter() when the request is known. Each pass that was given is given back. The
 * policy is in tenants.h, quota.h and admission.h. */
#ifndef SERVER_GATE_H
#define SERVER_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "server/admission.h"

struct api_error;
struct error;
struct http_exchange;
struct openai_request;
struct server;

struct gate_pass {
    bool entered;
    int tenant;
    int64_t taken;                        /* tokens */
    int64_t queue_ns, first_ns, total_ns; /* how long it may take; 0 = no limit */
};

/* Reads the keys that the settings name; again on a hangup, when a broken file changes nothing. */
int gate_load(struct server *s, struct error *err);

/* Who asks: sets the exchange's tenant and key. open: nobody needs to be known. */
int gate_identify(struct server *s, struct http_exchange *x, bool open, struct api_error *e);

/* What the headers tell. */
int gate_look(struct server *s, struct http_exchange *x, struct api_error *e);

/* Lets this request of n sequences in; adds what is left of the quota to the answer's headers. */
int gate_enter(struct server *s, struct gate_pass *pass, struct http_exchange *x,
               const struct openai_request *wanted, int n, struct api_error *e);

/* The request has ended and used so many tokens. */
void gate_leave(struct server *s, struct gate_pass *pass, int64_t used);

/* The claim of a request that came at start_ns. */
void gate_claim(const struct server *s, const struct gate_pass *pass, int64_t start_ns,
                struct engine_claim *claim);

/* The engine's queue is full after all: says when to come back. */
void gate_overloaded(struct server *s, struct api_error *e);

/* Whether a request of so many tokens would be within the quota; takes nothing. */
int gate_quota(const struct server *s, int tenant, int64_t tokens, struct api_error *e);

/* Tokens of the prompts of a request; text is guessed at by its bytes. */
int64_t gate_prompt_tokens(const struct openai_request *wanted);

/* Judges and puts the refusal into words; returns 0 when it fits. */
int gate_judge(struct server *s, const struct admission_ask *ask, struct admission_verdict *ret,
               struct api_error *e);

#endif
