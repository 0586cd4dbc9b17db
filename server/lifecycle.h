/* lifecycle.h - moves a server from loading to its end.
 *
 * Owns      the server's state and its deadline.
 * Borrows   the server.
 * Thread    the loop's.
 * Fails     into the server: a model that cannot be loaded stops the loop.
 * Cost      O(1), but aborting: O(requests).
 *
 * loading -> serving -> leaving -> last call -> draining -> aborting. SIGTERM makes a server
 * leave: it says so (readiness, Connection: close) and serves on for the drain delay, in which
 * balancers look elsewhere. At last call it takes what waits in the listen queue and closes the
 * port; open connections are still served for a second, as requests may be under way on them.
 * Then it drains: new requests are refused, running ones have the shutdown timeout. At last it
 * aborts, with an error for each that is left. SIGINT goes to draining at once; a second signal
 * aborts, a third ends without a word. */
#ifndef SERVER_LIFECYCLE_H
#define SERVER_LIFECYCLE_H

#include <stdint.h>

struct server;

/* The engine has woken us: is it loaded? */
void lifecycle_engine(struct server *s);

void lifecycle_tick(struct server *s, int64_t now_ns);

/* number is the signal's, nth counts from 1. */
void lifecycle_signal(struct server *s, int number, int nth);

#endif
