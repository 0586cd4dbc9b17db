/* model_backend.h - opens the back end that can run a model.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    the one that will use the back end.
 * Fails     as backend_open().
 * Cost      as backend_open().
 *
 * Refuses, before devices are opened, a model that does not divide by their number; parts that are not
 * split over devices at all are refused when they are loaded. */
#ifndef ENGINE_MODEL_BACKEND_H
#define ENGINE_MODEL_BACKEND_H

#include "kernels/backend.h"

struct error;
struct source;

int model_backend_open(struct backend **ret, const struct backend_options *options,
                       const struct source *src, struct error *err);

#endif
