/* events.h - cuts a stream of server-sent events into its data lines.
 *
 * Owns      a buffer for the event that is not complete, until events_deinit().
 * Borrows   the callback's argument for as long as it is fed.
 * Thread    one.
 * Fails     with -ENOMEM, or -EMSGSIZE for an event above 1 MiB.
 * Cost      events that lie complete in the fed bytes are not copied.
 *
 * Comment lines (pings) and other fields are passed over. */
#ifndef TESTS_LOAD_EVENTS_H
#define TESTS_LOAD_EVENTS_H

#include <stddef.h>

struct events {
    void (*event)(void *arg, const char *data, size_t n);
    void *arg;
    char *rest; /* n bytes */
    size_t n, size;
};

int events_feed(struct events *e, const char *bytes, size_t n);
void events_reset(struct events *e); /* forgets what is not complete; keeps the buffer */
void events_deinit(struct events *e);

#endif
