/* scratch.h - temporary directories and fixture files for tests.
 *
 * Owns      the directory until scratch_remove(); loaded bytes belong to the caller.
 * Borrows   arguments during the call.
 * Thread    one at a time.
 * Fails     by a failed assertion of the running test.
 * Cost      file system calls. */
#ifndef TESTS_SUPPORT_SCRATCH_H
#define TESTS_SUPPORT_SCRATCH_H

#include <stddef.h>

enum { SCRATCH_PATH = 1024 };

/* A fresh directory. */
void scratch_make(char path[SCRATCH_PATH]);
void scratch_remove(const char *path); /* with everything in it */

/* dst = folder/name */
const char *scratch_join(char dst[SCRATCH_PATH], const char *folder, const char *name);

/* Path of a file under tests/fixtures. */
const char *scratch_fixture(char dst[SCRATCH_PATH], const char *name);

/* malloc'ed bytes of a file, 64-byte aligned. */
void *scratch_load(const char *path, size_t *ret_n);
void scratch_save(const char *path, const void *bytes, size_t n);

/* Calls visit for every file of a folder, by name; returns how many there were. */
int scratch_each(const char *folder, void (*visit)(const char *path, const char *name, void *arg),
                 void *arg);
/* For scratch_each(): the file is the same, byte for byte, in the folder that arg names. */
void scratch_see_same(const char *path, const char *name, void *arg);

#endif
