/* builtin.h - the checkpoint that the build embeds in the program.
 *
 * Owns      the bytes, for the life of the process.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never; a build without an embedded model has no files.
 * Cost      none.
 *
 * The implementation is generated: the build quantizes deploy/models/stories with the
 * gptqt-quantize it has just built, and server/embed_model.py wraps the result. */
#ifndef SERVER_BUILTIN_H
#define SERVER_BUILTIN_H

#include "engine/source.h"

enum { BUILTIN_MAX_FILES = 8 };

/* Fills files (BUILTIN_MAX_FILES) and returns how many there are. */
int builtin_files(struct source_file *files);

#endif
