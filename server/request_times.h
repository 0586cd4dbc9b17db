/* request_times.h - measures requests, and tells metrics, headers and the log.
 *
 * Owns      nothing.
 * Borrows   requests and exchanges during the call.
 * Thread    the loop's.
 * Fails     never.
 * Cost      O(choices) at a request's end; O(1) a text.
 *
 * The engine says when a choice had its first step and token; where it does not, the time of the
 * event stands in. The parts of a choice's life are queue, prefill and decode. */
#ifndef SERVER_REQUEST_TIMES_H
#define SERVER_REQUEST_TIMES_H

struct choice;
struct engine_event;
struct http_exchange;
struct request;

void request_times_started(struct choice *c, const struct engine_event *event);
void request_times_text(struct choice *c, const struct engine_event *event);

/* The choice's last event; a choice is counted once. */
void request_times_ended(struct choice *c, const struct engine_event *event);

/* What is known goes to the exchange, for the log. */
void request_times_note(const struct request *r, struct http_exchange *x);

/* The same, and the answer that follows gets Server-Timing and openai-processing-ms. */
void request_times_head(const struct request *r, struct http_exchange *x);

/* The request ends well. */
void request_times_finished(const struct request *r, struct http_exchange *x);

#endif
