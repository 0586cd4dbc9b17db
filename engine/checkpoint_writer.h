/* checkpoint_writer.h - writes a checkpoint directory, one tensor at a time, resumably.
 *
 * Owns      DIR.partial while open (a lock keeps other writers out).
 * Borrows   names, bytes and options during the call.
 * Thread    one at a time.
 * Fails     -EEXIST (DIR is something else), -EBUSY (another writer), -EINVAL (a name or shape),
 *           -ENOSPC and other errors of the disk; the text names the file and the reason.
 * Cost      add() waits for the disk; finish() copies everything once and needs the space twice.
 *
 * Every tensor added stays in DIR.partial through a kill or power cut. A later writer with equal
 * settings finds it with has() and need not make it again; the checkpoint that finish() leaves
 * depends on what was added, not on the order or on interruptions. Before finish() has renamed
 * the complete directory into place, DIR is what it was. The format: engine/CHECKPOINT.md. */
#ifndef ENGINE_CHECKPOINT_WRITER_H
#define ENGINE_CHECKPOINT_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/safetensors.h"

struct error;
struct checkpoint_writer;

struct checkpoint_writer_options {
    /* Says what is being made: the quantizer's settings and the source's identity. A partial
     * checkpoint with other settings is dropped. */
    const char *settings;
    uint64_t shard_bytes; /* of tensor data in one file; 0 = 4 GB */
    bool force;           /* moves a DIR that is no checkpoint aside, to DIR.old */
};

int checkpoint_writer_open(struct checkpoint_writer **ret, const char *dir,
                           const struct checkpoint_writer_options *options, struct error *err);

/* -EEXIST as open() would say it, for who has long work to do before. */
int checkpoint_writer_check(const char *dir, bool force, struct error *err);

/* Whether a run before this one has left tensor (or file) name. */
bool checkpoint_writer_has(const struct checkpoint_writer *w, const char *name);

/* Maps what has() finds: the safetensors file of a tensor, or a file as it is. -ENOENT when there
 * is none. */
int checkpoint_writer_map(const struct checkpoint_writer *w, const char *name, struct map *ret,
                          struct error *err);

/* Names are letters, digits, '.', '_' and '-'. A binary-coded block is a U8 tensor NAME.bcq of
 * shape [bytes]; what lies beside it, NAME.outliers and NAME.rotation, the same. */
int checkpoint_writer_add(struct checkpoint_writer *w, const struct safetensors_tensor *tensor,
                          struct error *err);

/* "tokenizer.json" and the like, as they are. */
int checkpoint_writer_add_file(struct checkpoint_writer *w, const char *name, const void *bytes,
                               size_t n, struct error *err);

/* config.json: the source's, with "quantization_config" set to the JSON object quantization
 * (NULL: taken out). */
int checkpoint_writer_add_config(struct checkpoint_writer *w, const char *config, size_t n,
                                 const char *quantization, struct error *err);

/* Assembles the directory and renames it into place; the writer is then only to be closed. */
int checkpoint_writer_finish(struct checkpoint_writer *w, struct error *err);

/* Without finish() before, DIR.partial stays for a later run. NULL is allowed. */
void checkpoint_writer_close(struct checkpoint_writer *w);

#endif
