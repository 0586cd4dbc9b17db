/* offline_fixture.h - opens a model of the fixtures for its forward pass.
 *
 * Owns      nothing; the model is the caller's to offline_close().
 * Borrows   the name during the call.
 * Thread    the test's.
 * Fails     by ending the test.
 * Cost      small.
 */
#ifndef TESTS_SUPPORT_OFFLINE_FIXTURE_H
#define TESTS_SUPPORT_OFFLINE_FIXTURE_H

#include "engine/offline.h"

/* On the CPU, one thread, fp32 keys and values; that many tokens are its context, a step's tokens and its
 * rows of logits. name: below the fixtures, or a whole path. */
void offline_fixture_open(struct offline *ret, const char *name, int tokens);

#endif
