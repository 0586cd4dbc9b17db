/* exchange.h - what devices that share a model tell each other.
 *
 * Owns      rooms on each device for sums to be and for what others sent, an event of each.
 * Borrows   the devices.
 * Thread    the back end's.
 * Fails     as device.h: a device keeps its first failure; after one nothing is exchanged.
 * Cost      a sum: each device takes every other's part, n - 1 copies of it, then adds them up.
 *
 * Sums are taken in the order of the devices, by each for itself: all have the same bits, which are
 * those of the run before. Copies go through cudaMemcpyPeerAsync, which finds a way also where devices
 * cannot reach each other's memory. */
#ifndef KERNELS_CUDA_EXCHANGE_H
#define KERNELS_CUDA_EXCHANGE_H

#include "kernels/cuda/device.h"

enum { MOST_DEVICES = 8 };

struct exchange {
    int n;
    struct gpu *gpu[MOST_DEVICES];
    cudaEvent_t event[MOST_DEVICES];
    struct room part[MOST_DEVICES]; /* a device's own part of the sums */
    struct room got[MOST_DEVICES];  /* what the others sent */
};

int exchange_open(struct exchange *x, struct gpu *const *gpu, int n, struct error *err);
void exchange_close(struct exchange *x); /* half-opened is allowed */

/* Makes device d the current one. */
void exchange_use(const struct exchange *x, int d);
/* False after a failure of any device. */
bool exchange_good(const struct exchange *x);

/* Room for count numbers in part; false after a failure. */
bool exchange_room(struct exchange *x, size_t count);
/* dst[d] = (or +=) the sum of all parts, count numbers, on each device d. */
void exchange_sum(struct exchange *x, float *const *dst, size_t count, bool accumulate);
/* dst (rows, width) on the first device, from each device's columns: src[d] (rows, its share). */
void exchange_columns(struct exchange *x, float *dst, const float *const *src, int rows, int width);

#endif
