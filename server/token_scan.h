/* token_scan.h - reads a JSON array of token ids without a JSON tree.
 *
 * Owns      nothing; the ids are the caller's (malloc).
 * Borrows   the text during the call.
 * Thread    any; pure.
 * Fails     by returning 0: it is another kind of array, no JSON, or there is no memory.
 * Cost      two passes; 4 bytes an id, where jansson takes about 40.
 *
 * Only what every JSON parser would take is taken: whole numbers from 0 to INT32_MAX without
 * leading zeros. All else is left to one, which has the words for what is wrong. */
#ifndef SERVER_TOKEN_SCAN_H
#define SERVER_TOKEN_SCAN_H

#include <stddef.h>
#include <stdint.h>

/* s begins with '['. Returns the length of the array's text. */
size_t token_scan(int32_t **ret_ids, size_t *ret_n, const char *s, size_t n);

#endif
