/* router.h - finds the endpoint that a method and a path mean.
 *
 * Owns      the table of endpoints, which is constant.
 * Borrows   method and path during the call.
 * Thread    any.
 * Fails     never.
 * Cost      O(rows).
 *
 * One row is one endpoint, and all that /openapi.json says about it. HEAD is answered where GET
 * is. The last part of a path may be a parameter: "/v1/models/{id}" takes what follows, slashes
 * too, as names of models have them. Paths come as the client sent them: percent-encoded bytes
 * are decoded here, but never into a slash between two parts, and those of NUL and of broken
 * escapes are no path at all. */
#ifndef SERVER_ROUTER_H
#define SERVER_ROUTER_H

#include <stdbool.h>
#include <stddef.h>

struct http_exchange;
struct server;

struct router_row {
    const char *method, *path;
    const char *name;          /* in metrics */
    const char *summary;       /* one line for /openapi.json; NULL = the row is not in it */
    const char *body, *answer; /* names of schemas there, NULL = none */
    bool always;               /* answered also over the connection limit */
    void (*handle)(struct server *s, struct http_exchange *x);
    unsigned flags;
};

enum {
    ROUTER_OPEN = 1, /* needs no API key */
    ROUTER_WORK = 2  /* goes to the engine: quotas and admission count */
};

enum { ROUTER_NO_PATH = -1, ROUTER_NO_METHOD = -2, ROUTER_ALLOW = 64 };

/* The row's number, or one of the above; then allow (size at least ROUTER_ALLOW) lists the
 * methods. */
int router_find(const char *method, const char *path, char *allow, size_t size);

/* The decoded parameter of a path that router_find() gave this row for. Returns false, and an
 * empty string, when the row has none or it does not fit. */
bool router_parameter(int row, const char *path, char *ret, size_t size);

const struct router_row *router_get(int row); /* 0 <= row < router_count() */
int router_count(void);

#endif
