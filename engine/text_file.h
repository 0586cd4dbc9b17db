/* text_file.h - reads a text to measure or calibrate with.
 *
 * Owns      the text, until the caller frees it.
 * Borrows   the path during the call.
 * Thread    any.
 * Fails     -ENOENT and the like, -E2BIG over TOKENIZER_MAX_TEXT, -ENOMEM; the text names the file.
 * Cost      one copy of the file.
 *
 * CR LF and lone CR become LF, as in the Python programs that published perplexities come from:
 * their text mode reads files that way, and a file that was saved on Windows would otherwise
 * measure something else (WikiText-2 with CR LF: perplexity 1 % off). llama.cpp's programs take
 * bytes as they are, and whoever is to be compared with them has text_file_read_bytes(). */
#ifndef ENGINE_TEXT_FILE_H
#define ENGINE_TEXT_FILE_H

#include <stddef.h>

struct error;

/* *ret: malloc'ed, *ret_n bytes and a NUL. */
int text_file_read(char **ret, size_t *ret_n, const char *path, struct error *err);
int text_file_read_bytes(char **ret, size_t *ret_n, const char *path, struct error *err);

#endif
