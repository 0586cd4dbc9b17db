/* request.h - carries one request through the engine and back to its client.
 *
 * Owns      struct request from request_start() until the engine has ended all its choices.
 * Borrows   the server; the exchange until it is answered or its client leaves.
 * Thread    the loop's.
 * Fails     into the answer.
 * Cost      O(text) for each event; one chunk of a stream is written without a JSON tree.
 *
 * Each choice (every prompt, n times) is a request to the engine, whose tag is the choice. The
 * engine promises one last event for each, so a request lives until those have come, whether
 * its client is still there or not. The status line waits until the first choice has been
 * admitted: a prompt that turns out too long, or a full queue, gets a proper status. */
#ifndef SERVER_REQUEST_H
#define SERVER_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "server/api/api_error.h"
#include "server/api/openai_parse.h"

struct engine_event;
struct http_exchange;
struct server;

/* Parses the exchange's body, which is gone then, and names ignored fields in the answer's
 * headers. */
int request_parse(struct server *s, struct openai_request **ret, struct http_exchange *x,
                  enum openai_kind kind, struct api_error *e);

/* Parses the exchange's body and submits it, or answers with the error. Not for
 * OPENAI_DETOKENIZE, which needs no engine. */
void request_start(struct server *s, struct http_exchange *x, enum openai_kind kind);

/* Answers what this request would cost, and whether it would be taken. */
void request_explain(struct server *s, struct http_exchange *x, enum openai_kind kind);

/* Takes the event. */
void request_event(struct engine_event *event);

/* Ends what is over its time. */
void request_tick(struct server *s, int64_t now_ns);

/* Ends the requests of the exchange's tenant with this id: the answer's or X-Request-Id, which a client
 * may have given to several. Answers the exchange, or returns false: there is none. */
bool request_cancel(struct server *s, const char *id, struct http_exchange *x);

/* Ends all requests with this error. */
void request_abort_all(struct server *s, enum api_error_kind kind, const char *message);

/* Frees all without a word; for after the engine has closed. */
void request_free_all(struct server *s);

#endif
