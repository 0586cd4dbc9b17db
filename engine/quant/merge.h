/* merge.h - joins the parts of a checkpoint that were made with quantize_options.layers.
 *
 * Owns      nothing beyond the call.
 * Borrows   paths during the call; parts are only read.
 * Thread    one.
 * Fails     -EINVAL (parts that do not belong together, overlap or leave blocks out; named),
 *           -EBADMSG (a damaged part, or no part), -ENOMEM, the writer's errors.
 * Cost      copies every byte twice; the source model is not needed.
 *
 * Parts belong together when they have equal settings, source and calibration text. The result is
 * the checkpoint that one run over all blocks makes, to the byte. */
#ifndef ENGINE_QUANT_MERGE_H
#define ENGINE_QUANT_MERGE_H

#include <stdbool.h>

struct error;
struct quantize_summary;

int merge_parts(struct quantize_summary *ret, const char *out, const char *const *parts,
                int n_parts, bool force, struct error *err);

#endif
