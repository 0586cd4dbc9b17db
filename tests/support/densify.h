/* densify.h - the dense model that a coded checkpoint stands for, for comparing products.
 *
 * Owns      nothing.
 * Borrows   paths during the call.
 * Thread    one.
 * Fails     by a failed assertion of the running test.
 * Cost      the model in fp32 on disk.
 *
 * Weights are what source_read_rows() gives: the codes' values and all that lies beside them. */
#ifndef TESTS_SUPPORT_DENSIFY_H
#define TESTS_SUPPORT_DENSIFY_H

void densify(const char *coded, const char *out);

#endif
