/* stop.h - ends one sequence's text at the first of its stop strings.
 *
 * Owns      copies of the strings, until stop_deinit().
 * Borrows   text and output buffer during calls.
 * Thread    engine.
 * Fails     stop_init(): -EINVAL names the limit, -ENOMEM. Else -ENOMEM (the output).
 * Cost      O(n_strings) a byte.
 *
 * Bytes are compared. The first string to be complete ends the text, and of several that the
 * same byte completes the longest; the text is cut where that one begins (or, with `keep`, where it ends). What may still become
 * a stop string is held back. Whole characters in, whole characters out: when strings and pieces
 * are valid UTF-8, so is each piece of output. */
#ifndef ENGINE_STOP_H
#define ENGINE_STOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct error;
struct stop_string;

enum { STOP_MAX = 16, STOP_MAX_BYTES = 1024 /* of one string */ };

struct stop {
    struct stop_string *strings; /* (n_strings) */
    int n_strings;
    int matched; /* index of the string that ended the text, or -1 */
    bool keep;   /* that string is text too; to be set after stop_init() */
    char *held;  /* the last n_held bytes of text, a beginning of some string */
    size_t n_held;
};

/* strings: (n), each of lengths[i] bytes, none empty; n = 0 lets everything pass. */
int stop_init(struct stop *s, const char *const *strings, const size_t *lengths, int n,
              struct error *err);
void stop_deinit(struct stop *s); /* a zeroed one is allowed */

/* Appends the text that is certain. Returns 1 once the text has ended (the rest of the piece is
 * dropped, and so is all further text), else 0. */
int stop_push(struct stop *s, const char *text, size_t n, struct buf *out);

/* After the last piece: what is held back is ordinary text. */
int stop_flush(struct stop *s, struct buf *out);

#endif
