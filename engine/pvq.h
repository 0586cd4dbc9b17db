/* pvq.h - numbers the integer vectors of a pyramid, and finds a vector by its number.
 *
 * Owns      struct pvq: its table of counts, until pvq_free().
 * Borrows   vectors during the call.
 * Thread    any; a table is read-only once made.
 * Fails     pvq_new(): -ENOMEM; pvq_vector(): -EBADMSG for a number past the last.
 * Cost      a table dims * norm sums of PVQ_LIMBS words; a vector dims + norm of them.
 *
 * The pyramid S(n, k) holds the vectors of n integers whose absolute values sum to k (Fischer 1986,
 * "A pyramid vector quantizer", section III): N(n, k) = N(n - 1, k) + N(n, k - 1) + N(n - 1, k - 1)
 * of them. A vector's number counts those before it when the first coordinate goes 0, 1, -1, 2, -2,
 * ... and the rest likewise. All sums are exact. */
#ifndef ENGINE_PVQ_H
#define ENGINE_PVQ_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct pvq;

enum { PVQ_MAX_DIMS = 64, PVQ_MAX_NORM = 1023, PVQ_LIMBS = 7 /* N(64, 1023) has 417 bits */ };

/* Least significant word first. */
struct pvq_number {
    uint64_t limb[PVQ_LIMBS];
};

/* For vectors of up to dims integers and norms up to norm, within the limits above. */
int pvq_new(struct pvq **ret, int dims, int norm, struct error *err);
void pvq_free(struct pvq *p); /* NULL is allowed */

/* N(dims, norm); N(0, 0) = 1. */
const struct pvq_number *pvq_count(const struct pvq *p, int dims, int norm);

/* Bits that every number below N(dims, norm) fits: 0 when there is one vector. */
int pvq_bits(const struct pvq *p, int dims, int norm);

void pvq_index(const struct pvq *p, const int *vector, int dims, int norm, struct pvq_number *ret);
int pvq_vector(const struct pvq *p, const struct pvq_number *number, int dims, int norm,
               int *vector, struct error *err);

#endif
