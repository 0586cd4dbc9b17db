/* buf.h - collects bytes of unknown total length.
 *
 * Owns      data, until buf_free(); a caller may take it over and zero the struct.
 * Borrows   the bytes given during the call.
 * Thread    one at a time.
 * Fails     -ENOMEM; the buffer then keeps what it had.
 * Cost      amortised O(1) a byte.
 *
 * struct buf b = {0} is an empty buffer. After a successful call data[len] is a NUL that len
 * does not count. */
#ifndef ENGINE_BUF_H
#define ENGINE_BUF_H

#include <stddef.h>

struct buf {
    char *data;
    size_t len, cap;
};

/* Makes room for n bytes after len. */
int buf_reserve(struct buf *b, size_t n);

int buf_append(struct buf *b, const void *bytes, size_t n);
int buf_puts(struct buf *b, const char *text);
int buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Leaves an empty buffer. */
void buf_free(struct buf *b);

#endif
