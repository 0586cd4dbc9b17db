/* model_source.h - opens what a user calls MODEL.
 *
 * Owns      nothing; the source is the caller's.
 * Borrows   the name during the call.
 * Thread    any.
 * Fails     -ENOENT, and whatever source_open() gives; the text names the file.
 * Cost      that of source_open().
 *
 * "builtin" is the model embedded in this program; anything else is a path. */
#ifndef SERVER_MODEL_SOURCE_H
#define SERVER_MODEL_SOURCE_H

struct error;
struct source;

int model_source_open(struct source **ret, const char *model, struct error *err);

#endif
