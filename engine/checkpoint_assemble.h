/* checkpoint_assemble.h - joins files of one tensor each into the weight files of a checkpoint.
 *
 * Owns      nothing.
 * Borrows   paths during the call.
 * Thread    any.
 * Fails     -EBADMSG when a part is damaged, errno of the disk; files written by then stay.
 * Cost      reads and writes every byte once; parts are mapped, memory stays small.
 *
 * The result depends on the parts' names and contents alone. */
#ifndef ENGINE_CHECKPOINT_ASSEMBLE_H
#define ENGINE_CHECKPOINT_ASSEMBLE_H

#include <stdint.h>

struct error;

/* Writes model.safetensors into out, or, when the data exceed shard_bytes,
 * model-00001-of-0000N.safetensors and so on with model.safetensors.index.json. */
int checkpoint_assemble(const char *parts, const char *out, uint64_t shard_bytes,
                        struct error *err);

#endif
