/* in_short.h - a row of logits in short, the plain way: what backend_top() has to give.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any.
 * Fails     never.
 * Cost      a pass over the row. */
#ifndef TESTS_SUPPORT_IN_SHORT_H
#define TESTS_SUPPORT_IN_SHORT_H

#include <stdint.h>

/* ranks: (BACKEND_TOP), sums: (backend_spans(width)). */
void in_short(const float *logits, int width, float temperature, uint64_t *ranks, uint64_t *sums);

#endif
