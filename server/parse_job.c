#include "server/parse_job.h"

#include <errno.h>
#include <stdlib.h>

#include "server/api/api_error.h"
#include "server/http.h"
#include "server/loop.h"

struct job {
    struct http_exchange *exchange; /* NULL: the client has left */
    struct parse_hook hook;
    struct text body;
    enum openai_kind kind;
    struct openai_limits limits;
    struct openai_request *result;
    struct api_error error;
};

/* On another thread: of the job, only what openai_parse() needs. */
static void work(void *arg) {
    struct job *job = arg;
    struct openai_request *result = NULL;
    if (openai_parse(&result, job->kind, job->body.data, job->body.n, &job->limits, &job->error) ==
        0)
        job->result = result;
    text_deinit(&job->body);
}

static void done(void *arg) {
    struct job *job = arg;
    struct http_exchange *x = job->exchange;
    if (x) {
        x->left = NULL;
        job->hook.done(job->hook.arg, x, job->result, &job->error);
    } else {
        openai_request_free(job->result);
    }
    free(job);
}

static void on_left(void *keeper) { ((struct job *)keeper)->exchange = NULL; }

int parse_job_start(struct loop *loop, struct http_exchange *x, enum openai_kind kind,
                    const struct openai_limits *limits, const struct parse_hook *hook) {
    struct job *job = calloc(1, sizeof *job);
    if (!job) return -ENOMEM;
    *job = (struct job){
        .exchange = x, .hook = *hook, .body = x->body, .kind = kind, .limits = *limits};
    int r = loop_work(loop, work, done, job);
    if (r < 0) {
        free(job);
        return r;
    }
    x->body = (struct text){0};
    x->keeper = job;
    x->left = on_left;
    return 0;
}
