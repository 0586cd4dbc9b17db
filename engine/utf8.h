/* utf8.h - reads and writes single characters of UTF-8.
 *
 * Owns      nothing.
 * Borrows   the text during the call.
 * Thread    any.
 * Fails     never; bytes that are no UTF-8 are an answer, not an error.
 * Cost      O(1), utf8_trim() O(what it cuts).
 *
 * "Invalid part" means the maximal subpart of the Unicode Standard (3.9, table 3-8): the
 * longest beginning of a well-formed character, or else one byte. One U+FFFD stands for it. */
#ifndef ENGINE_UTF8_H
#define ENGINE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { UTF8_MAX = 4 /* bytes of the longest character */ };

struct utf8_char {
    uint32_t code;
    int len;   /* 1..4: of the character, or of the invalid part */
    bool ok;   /* a well-formed character */
    bool open; /* not ok only because the text ends: more bytes could complete it */
};

/* The character or invalid part that text begins with; n >= 1. */
struct utf8_char utf8_next(const char *text, size_t n);

/* The same for the end of the text; `open` is not set. */
struct utf8_char utf8_last(const char *text, size_t n);

/* Writes a scalar value's 1 to 4 bytes and returns how many. */
int utf8_put(char out[UTF8_MAX], uint32_t code);

bool utf8_check(const char *text, size_t n);

/* The White_Space property. */
bool utf8_is_space(uint32_t code);

/* Moves both ends over characters that Python's str.strip() takes away: white space and the
 * separators U+001C to U+001F. */
void utf8_trim(const char **text, size_t *n);

#endif
