/* nfc.h - brings text into Unicode normalization form C.
 *
 * Owns      nothing.
 * Borrows   the text during the call.
 * Thread    any.
 * Fails     -ENOMEM; -ENOTSUP where the build has no Unicode tables (libutf8proc).
 * Cost      O(n log n) at worst, O(n) for ASCII.
 *
 * Bytes that are no UTF-8 are copied, and part the text: nothing composes across them. The tables
 * are utf8proc's (Unicode 14); the tokenizers library has Unicode 9's, and so orders a few marks
 * that were added since differently. */
#ifndef ENGINE_NFC_H
#define ENGINE_NFC_H

#include <stdbool.h>
#include <stddef.h>

struct buf;

/* Whether nfc_append() can do anything but fail. */
bool nfc_available(void);

/* Appends the normalized text. */
int nfc_append(struct buf *out, const char *text, size_t n);

#endif
