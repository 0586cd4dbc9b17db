/* generate.h - runs one request on an engine and waits for its end.
 *
 * Owns      struct generator: the engine it opened, a lock and a condition.
 * Borrows   the text callback's argument during generate_run().
 * Thread    one; the engine wakes it.
 * Fails     what engine_open(), engine_submit() and the request fail with.
 * Cost      that of the request.
 *
 * The terminal commands go through the same engine as the server, so they give the same text. */
#ifndef SERVER_GENERATE_H
#define SERVER_GENERATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "engine/engine.h"

struct error;

struct generator {
    struct engine *engine;
    pthread_mutex_t lock; /* guards woken */
    pthread_cond_t wake;
    bool woken;
};

struct generate_result {
    enum engine_finish finish;
    int n_prompt, n_generated;
};

/* Takes src, also on failure. */
int generate_open(struct generator *g, struct source *src, const struct engine_options *options,
                  struct error *err);
void generate_close(struct generator *g);

/* Takes request, also on failure. on_text gets complete UTF-8 characters as they come and
 * returns false to cancel. */
int generate_run(struct generator *g, struct engine_request *request,
                 bool (*on_text)(void *arg, const char *text, size_t n), void *arg,
                 struct generate_result *ret, struct error *err);

#endif
