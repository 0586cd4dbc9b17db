/* api_error.h - says what went wrong with a request in the words of OpenAI's API.
 *
 * Owns      nothing; struct api_error lives with the caller.
 * Borrows   the arguments during the call.
 * Thread    any.
 * Fails     never.
 * Cost      one formatted line.
 *
 * One table row is one kind of error: its HTTP status, type and code. Clients switch on these,
 * so rows are added and never changed. */
#ifndef SERVER_API_API_ERROR_H
#define SERVER_API_API_ERROR_H

#include <stdint.h>

#include "kernels/error.h"

struct text;

enum api_error_kind {
    API_ERROR_INVALID,     /* a field or the whole body is wrong; param names the field */
    API_ERROR_CONTEXT,     /* the prompt does not fit */
    API_ERROR_MODEL,       /* another model was asked for */
    API_ERROR_NOT_FOUND,   /* no such path */
    API_ERROR_METHOD,      /* the path has other methods */
    API_ERROR_TOO_LARGE,   /* the body is over the limit */
    API_ERROR_PROTOCOL,    /* the HTTP message could be read in two ways */
    API_ERROR_HEADERS,     /* the head is too long */
    API_ERROR_TARGET,      /* its target is */
    API_ERROR_VERSION,     /* another version of HTTP */
    API_ERROR_SLOW,        /* the request did not come in time */
    API_ERROR_QUEUE,       /* the waiting line is full */
    API_ERROR_CONNECTIONS, /* too many connections */
    API_ERROR_DRAINING,    /* the server is going down */
    API_ERROR_LOADING,     /* the model is not there yet */
    API_ERROR_TIMEOUT,     /* over the request's time limit */
    API_ERROR_MEMORY,      /* out of memory */
    API_ERROR_ENGINE,      /* the engine failed */
    API_ERROR_KEY,         /* no API key, or one that is not known */
    API_ERROR_RATE,        /* over the key's quota */
    API_ERROR_CANCELLED,   /* by another request */
    API_ERROR_BROKEN,      /* the engine has failed before */
    API_ERROR_NO_REQUEST   /* no request of this id runs */
};

enum api_retry { API_RETRY_TABLE, API_RETRY_NEVER };

struct api_error {
    enum api_error_kind kind;
    enum api_retry retry; /* NEVER: the same will not do later either */
    int64_t retry_ns;     /* when it may; 0 = what the table says */
    char param[96];       /* the field's path, "messages[0].role"; "" = none */
    struct error error;   /* the message */
};

/* Fills the error and returns a negative number. e may be NULL. */
int api_error_set(struct api_error *e, enum api_error_kind kind, const char *param,
                  const char *format, ...) __attribute__((format(printf, 4, 5)));

/* The kind that an engine's negative errno means. */
enum api_error_kind api_error_from_errno(int code);

int api_error_status(enum api_error_kind kind);
const char *api_error_code(enum api_error_kind kind); /* NULL = null */
int api_error_count(void);                            /* of kinds */

/* Seconds after which asking again makes sense; 0 = the header is not sent. */
int api_error_retry(enum api_error_kind kind);

/* Adds {"error":{...}}. */
void api_error_render(struct text *out, const struct api_error *e);

#endif
