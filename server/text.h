/* text.h - a growing buffer of bytes with the few ways this server writes into it.
 *
 * Owns      its bytes; text_deinit() frees them, text_take() gives them away.
 * Borrows   what is added, during the call.
 * Thread    any, one at a time.
 * Fails     without memory the text is marked failed and ignores what follows; check once at
 *           the end, as with stdio.
 * Cost      amortised O(bytes added).
 *
 * After a failure the bytes are incomplete, so a reader looks at failed before it uses them.
 * A zeroed struct is an empty text. */
#ifndef SERVER_TEXT_H
#define SERVER_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *data; /* n bytes, NUL after; NULL while empty */
    size_t n, size;
    bool failed;
};

void text_deinit(struct text *t); /* leaves an empty text */
void text_clear(struct text *t);  /* empty, keeps the memory */

/* The bytes become the caller's (NULL when failed); the text is empty then. */
char *text_take(struct text *t, size_t *ret_n);

void text_add(struct text *t, const void *bytes, size_t n);
void text_adds(struct text *t, const char *string);
void text_addf(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The inside of a JSON string: quotes, backslashes and control characters escaped, bytes that
 * are not UTF-8 replaced by U+FFFD. */
void text_add_escaped(struct text *t, const char *bytes, size_t n);

/* The same in quotation marks; NULL gives null. */
void text_add_json(struct text *t, const char *string);

/* Length of the complete UTF-8 character at s, 0 when the bytes are not one. */
size_t text_utf8(const char *s, size_t n);

#endif
