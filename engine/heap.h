/* heap.h - priority queues over numbered things, any of which can leave from the middle.
 *
 * Owns      nothing: the nodes are the caller's, and so is the root of each queue (-1 = empty).
 * Borrows   nodes and arg while things are queued.
 * Thread    one.
 * Fails     never.
 * Cost      O(log n) expected for each operation, no allocation; the first one is the root.
 *
 * Many queues can share the nodes, a thing being in one of them at most. What before() says of
 * two things must not change while they are queued. */
#ifndef ENGINE_HEAP_H
#define ENGINE_HEAP_H

#include <stdbool.h>
#include <stdint.h>

struct heap_node {
    int up, down[2]; /* -1 = none */
};

struct heap {
    struct heap_node *nodes; /* by number */
    bool (*before)(const void *arg, int a, int b);
    const void *arg;
    uint64_t coins; /* state of the coin that keeps the trees shallow; any value */
};

/* Both return the new root. */
int heap_insert(struct heap *h, int root, int i);
int heap_remove(struct heap *h, int root, int i);

#endif
