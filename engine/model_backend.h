/* model_backend.h - opens the back end that can run a model.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    the one that will use the back end.
 * Fails     as backend_open().
 * Cost      as backend_open(), and a look at the list of tensors.
 *
 * Where the user leaves the choice ("auto") several GPUs are passed over for a model with parts that
 * are not split over them; the back end's note says so. Who names a back end gets that one, and its
 * refusal. */
#ifndef ENGINE_MODEL_BACKEND_H
#define ENGINE_MODEL_BACKEND_H

#include "kernels/backend.h"

struct error;
struct source;

int model_backend_open(struct backend **ret, const struct backend_options *options,
                       const struct source *src, struct error *err);

#endif
