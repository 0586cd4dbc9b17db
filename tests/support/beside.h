/* beside.h - makes random outliers and rotations for tests.
 *
 * Owns      nothing; blocks are the caller's to free().
 * Borrows   arguments during the call.
 * Thread    any.
 * Fails     aborts without memory, or where no rotation has the size.
 * Cost      O(rows * cols).
 *
 * Equal seeds give equal blocks. */
#ifndef TESTS_SUPPORT_BESIDE_H
#define TESTS_SUPPORT_BESIDE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/outliers.h"
#include "kernels/rotation.h"

/* Rows with no, few and many entries; every seventh row none, row 0 the most. */
void *beside_outliers(struct outliers_view *ret, int rows, int cols, uint64_t seed);

/* Columns 0, 3, 6 and so on as a whole. */
void *beside_columns(struct outliers_view *ret, int rows, int cols, uint64_t seed);

/* both: outputs are rotated, too. */
void *beside_rotation(struct rotation_view *ret, int rows, int cols, bool both, uint64_t seed);

#endif
