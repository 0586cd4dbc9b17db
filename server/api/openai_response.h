/* openai_response.h - writes the objects and events of /v1/responses.
 *
 * Owns      nothing; everything goes to the caller's text.
 * Borrows   its arguments during the call.
 * Thread    any; pure: the same input gives the same bytes.
 * Fails     only as struct text does.
 * Cost      O(bytes written), no JSON tree.
 *
 * An answer has one message with one part of text. A stream tells its life in typed events, each
 * with a number; the object itself is in the first and the last of them. */
#ifndef SERVER_API_OPENAI_RESPONSE_H
#define SERVER_API_OPENAI_RESPONSE_H

#include <stddef.h>
#include <stdint.h>

#include "server/api/openai_parse.h"
#include "server/api/openai_render.h"

struct text;

struct openai_response {
    const char *id, *own_id; /* own_id: of the message, too */
    const char *model;
    int64_t created;
    const char *status; /* "in_progress", "completed", "incomplete", "failed" */
    const struct openai_request *wanted;
    const char *text; /* so far, text_len bytes */
    size_t text_len;
    const struct openai_usage *usage; /* NULL = not known yet */
    const char *error;                /* JSON, NULL = none */
};

/* The object itself. */
void openai_response_render(struct text *out, const struct openai_response *response);

/* "response.created" and the others that carry the object. */
void openai_response_event(struct text *out, const char *type, int number,
                           const struct openai_response *response);

/* Events of the message and its part: begins with "added", ends with "done". The events number
 * is the first one's; returns the number of events. */
int openai_response_begin(struct text *out, int number, const struct openai_response *response);
int openai_response_end(struct text *out, int number, const struct openai_response *response);

void openai_response_delta(struct text *out, int number, const struct openai_response *response,
                           const char *text, size_t n);

#endif
