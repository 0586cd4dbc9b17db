/* spill.h - room for a large array of floats, in memory or in an unlinked file.
 *
 * Owns      the array until spill_close().
 * Borrows   the folder's name during spill_open().
 * Thread    one to open and close; the array is the caller's.
 * Fails     -ENOMEM, errno of the file, -ENAMETOOLONG; the text names the folder.
 * Cost      a file is reserved on the disk at once: one that runs full later would kill us. */
#ifndef ENGINE_QUANT_SPILL_H
#define ENGINE_QUANT_SPILL_H

#include <stdbool.h>
#include <stddef.h>

struct error;

struct spill {
    float *x;
    size_t n_bytes;
    bool is_mapped;
};

/* Room for n floats; in a file of the folder (NULL = $TMPDIR, else /tmp) when they are more than
 * memory bytes. Memory is zeroed, as a fresh file is. */
int spill_open(struct spill *ret, size_t n, size_t memory, const char *folder, struct error *err);
void spill_close(struct spill *s); /* a zeroed one is allowed */

#endif
