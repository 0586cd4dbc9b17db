/* router.h - finds the endpoint that a method and a path mean.
 *
 * Owns      the table of endpoints, which is constant.
 * Borrows   method and path during the call.
 * Thread    any.
 * Fails     never.
 * Cost      O(rows).
 *
 * One row is one endpoint. HEAD is answered where GET is. */
#ifndef SERVER_ROUTER_H
#define SERVER_ROUTER_H

#include <stdbool.h>
#include <stddef.h>

struct http_exchange;
struct server;

struct router_row {
    const char *method, *path;
    const char *name; /* in metrics */
    bool always;      /* answered also over the connection limit */
    void (*handle)(struct server *s, struct http_exchange *x);
};

enum { ROUTER_NO_PATH = -1, ROUTER_NO_METHOD = -2 };

/* The row's number, or one of the above; then allow (at least 64 bytes) lists the methods. */
int router_find(const char *method, const char *path, char *allow, size_t size);

const struct router_row *router_get(int row); /* 0 <= row < router_count() */
int router_count(void);

#endif
