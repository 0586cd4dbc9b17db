/* parse_job.h - reads large bodies beside the loop, so that streams do not wait for them.
 *
 * Owns      the job: body and result, until the done hook has them.
 * Borrows   the server; the exchange until its client leaves.
 * Thread    the loop's; openai_parse() runs on a thread of libuv's pool.
 * Fails     into the hook's api_error; -ENOMEM when there is no memory for a job.
 * Cost      a hand-over of some 20 us; a body of 2 MiB takes 20 to 40 ms to read, one of 64 KiB
 *           about 0.5 ms, which is where the hand-over begins to pay. */
#ifndef SERVER_PARSE_JOB_H
#define SERVER_PARSE_JOB_H

#include "server/api/openai_parse.h"

struct api_error;
struct http_exchange;
struct loop;

enum { PARSE_JOB_BYTES = 64 << 10 /* shorter bodies are read in place */ };

struct parse_hook {
    /* The result is the hook's; NULL: e says why. It is not called when the client has left. */
    void (*done)(void *arg, struct http_exchange *x, struct openai_request *result,
                 const struct api_error *e);
    void *arg;
};

/* Takes the exchange's body on success. */
int parse_job_start(struct loop *loop, struct http_exchange *x, enum openai_kind kind,
                    const struct openai_limits *limits, const struct parse_hook *hook);

#endif
