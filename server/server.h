/* server.h - holds together the parts of a running server.
 *
 * Owns      the loop, the sockets, the engine and all requests until server_close().
 * Borrows   the settings until server_close().
 * Thread    one: the loop's. The engine's thread reaches it through loop_wake() alone.
 * Fails     opening with a negative errno; running never.
 * Cost      that of the model while opening.
 *
 * It is serving; SIGTERM makes it drain: no new connections, no new requests, what runs may
 * finish until the shutdown timeout; then it aborts what is left, with an error for each. A
 * second signal aborts at once. */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "server/metrics.h"

struct error;
struct http;
struct loop;
struct request;
struct settings;

enum server_state { SERVER_SERVING, SERVER_DRAINING, SERVER_ABORTING };

struct server {
    const struct settings *settings;
    struct loop *loop;
    struct http *http;
    struct engine *engine;
    const struct engine_info *info;
    struct request *requests; /* all that have not ended in the engine */
    struct metrics metrics;
    char model[128];   /* the served name */
    const char *names; /* all of them, see model_names.h */
    int64_t created;   /* seconds since 1970 */
    uint64_t serial;   /* of ids */
    uint64_t random;   /* state of the seeds for requests without one */
    enum server_state state;
    int64_t deadline_ns; /* of the state */
    bool interrupted;    /* by a second signal */
};

/* Loads the model and listens. */
int server_open(struct server **ret, const struct settings *settings, struct error *err);
void server_close(struct server *s); /* NULL is allowed */

/* Serves until a signal has ended it. Returns 0, or -EINTR after a second signal. */
int server_run(struct server *s);

int server_port(const struct server *s);

/* A number that nobody can guess well; for seeds and ids. */
uint64_t server_random(struct server *s);

#endif
