/* server.h - holds together the parts of a running server.
 *
 * Owns      the loop, the sockets, the engine and all requests until server_close().
 * Borrows   the settings until server_close().
 * Thread    one: the loop's. The engine's thread reaches it through loop_wake() alone.
 * Fails     opening with a negative errno; running never.
 * Cost      that of the model while opening.
 *
 * The port listens before the model is loaded; until then requests get a 503, and health its
 * progress. lifecycle.h has the states. */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "kernels/error.h"
#include "server/budget.h"
#include "server/health.h"
#include "server/metrics.h"
#include "server/text.h"

struct http;
struct loop;
struct request;
struct settings;
struct tenants;

/* In the order of a life, see lifecycle.h. */
enum server_state {
    SERVER_LOADING,
    SERVER_SERVING,
    SERVER_FAILED, /* so is the engine: answers, unhealthy, until its deadline */
    SERVER_LEAVING,
    SERVER_LAST_CALL,
    SERVER_DRAINING,
    SERVER_ABORTING
};

struct health_page { /* the body of /health as it was last asked for, and what it was made of */
    struct text body;
    struct engine_stats stats;
    enum health_verdict verdict;
    int64_t age_ms;
};

struct server {
    const struct settings *settings;
    struct loop *loop;
    struct http *http;
    struct engine *engine;
    const struct engine_info *info; /* NULL while the model loads */
    struct request *requests;       /* all that have not ended in the engine */
    struct metrics metrics;
    struct health health;
    struct health_page health_page;
    struct tenants *tenants;
    struct budget budget;
    char model[128];      /* the served name */
    const char *names;    /* all of them, see model_names.h */
    char fingerprint[24]; /* of the model and what computes it; "" = not asked for yet */
    int64_t created;      /* seconds since 1970 */
    uint64_t serial;      /* of ids */
    uint64_t random;      /* state of the seeds for requests without one */
    enum server_state state;
    int64_t deadline_ns; /* of the state */
    int status;          /* of server_run() */
    struct error failure;
    void (*ready)(struct server *s);
};

/* Opens the model's files, listens, and begins to load. */
int server_open(struct server **ret, const struct settings *settings, struct error *err);
void server_close(struct server *s); /* NULL is allowed */

/* Serves until a signal has ended it; ready is called once the model is loaded. Returns 0, -EINTR
 * after a second signal, -EIO: the model cannot be loaded, or -ENODEV: what it ran on has failed;
 * err says why in the last two cases. */
int server_run(struct server *s, void (*ready)(struct server *s), struct error *err);

int server_port(const struct server *s);

/* A number that nobody can guess well; for seeds and ids. */
uint64_t server_random(struct server *s);

#endif
