/* profile.h - times the operations of a back end, kind by kind.
 *
 * Owns      nothing; the struct is the caller's.
 * Borrows   the back end until profile_stop().
 * Thread    the back end's.
 * Fails     never.
 * Cost      two readings of the clock per operation while it runs, nothing otherwise: starting puts
 *           a table of timed operations in the place of the back end's own.
 *
 * Only a back end that does its work before it returns can be timed so; one that queues it would show
 * the queueing. The CPU's leaves nothing for later while it is timed, so a batch's step takes a little
 * longer then. */
#ifndef KERNELS_PROFILE_H
#define KERNELS_PROFILE_H

#include <stdbool.h>

#include "kernels/backend.h"

enum profile_part {
    PROFILE_LINEAR, /* products in the blocks, packing of inputs and forks included */
    PROFILE_OUTPUT, /* products after gather(): the output matrix */
    PROFILE_ATTENTION,
    PROFILE_KV_STORE,
    PROFILE_ROPE,
    PROFILE_NORM,
    PROFILE_GATE,
    PROFILE_OTHER, /* embed, add, gather, reading the result */
    PROFILE_PARTS
};

struct profile {
    struct backend *be;
    const struct backend_ops *ops; /* its own */
    struct backend_ops timed;
    double (*now)(void); /* seconds */
    bool gathered;
    double seconds[PROFILE_PARTS];
    long calls[PROFILE_PARTS];
};

/* Zeroes the sums. */
void profile_start(struct profile *p, struct backend *be, double (*now)(void));
void profile_stop(struct profile *p);

/* "linear layers"; part < PROFILE_PARTS. */
const char *profile_name(enum profile_part part);

#endif
