/* error.h - carries one line of text from where something failed to who reports it.
 *
 * Owns      nothing; struct error lives with the caller, usually on its stack.
 * Borrows   the arguments during the call.
 * Thread    any; no shared state.
 * Fails     never.
 * Cost      one vsnprintf.
 *
 * A function that can fail returns 0 or a negative errno and sets the text in the same
 * statement: return error_set(err, -EBADMSG, "tensor '%s': ...", name). */
#ifndef KERNELS_ERROR_H
#define KERNELS_ERROR_H

struct error {
    char text[512]; /* NUL-terminated, cut when longer; one line */
};

/* Writes the text (err may be NULL) and returns code. */
int error_set(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text that is there, and returns code. */
int error_prefix(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
