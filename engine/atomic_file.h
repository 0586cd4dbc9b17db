/* atomic_file.h - writes a file that appears complete or not at all.
 *
 * Owns      the descriptor and the temporary file beside the path, until commit or close.
 * Borrows   arguments during the call.
 * Thread    one at a time for each file.
 * Fails     with the errno of the system call; the text names the file and the reason.
 * Cost      commit waits for the disk (fsync of the file and of its directory).
 *
 * After commit() has returned 0 the file survives a power cut; before, the path keeps what it
 * held. A killed process leaves a temporary: atomic_file_is_temporary() tells its name. */
#ifndef ENGINE_ATOMIC_FILE_H
#define ENGINE_ATOMIC_FILE_H

#include <stdbool.h>
#include <stddef.h>

struct error;

struct atomic_file {
    int fd; /* -1 = not open */
    char *path, *temporary;
};

int atomic_file_open(struct atomic_file *ret, const char *path, struct error *err);
int atomic_file_write(struct atomic_file *file, const void *bytes, size_t n, struct error *err);

/* Syncs, renames into place and closes; on failure the temporary is gone. */
int atomic_file_commit(struct atomic_file *file, struct error *err);

/* Drops what was not committed; harmless after commit. */
void atomic_file_close(struct atomic_file *file);

/* All of the above for bytes that are in memory. */
int atomic_file_save(const char *path, const void *bytes, size_t n, struct error *err);

/* Makes renames and removals in a directory durable. */
int atomic_file_sync_directory(const char *path, struct error *err);

bool atomic_file_is_temporary(const char *name);

/* Removes what killed writers of a path have left beside it. Nobody else may be writing it. */
void atomic_file_sweep(const char *path);

#endif
