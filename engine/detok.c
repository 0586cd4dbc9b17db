#include "engine/detok.h"

#include <string.h>

#include "engine/buf.h"
#include "engine/tokenizer.h"
#include "engine/utf8.h"

static int put_replacement(struct buf *out) { return buf_append(out, "\xef\xbf\xbd", 3); }

/* Well-formed text up to the first part that is not: one append for all of it. */
static size_t valid_prefix(const char *bytes, size_t n) {
    size_t i = 0;
    while (i < n) {
        struct utf8_char c = utf8_next(bytes + i, n - i);
        if (!c.ok) break;
        i += (size_t)c.len;
    }
    return i;
}

/* Adds bytes to the held ones until those are a character or cannot become one. Returns how
 * many it took. */
static size_t complete_held(struct detok *d, const char *bytes, size_t n, struct buf *out,
                            int *status) {
    size_t taken = 0;
    while (d->n_held && taken < n) {
        d->held[d->n_held] = bytes[taken];
        struct utf8_char c = utf8_next(d->held, (size_t)d->n_held + 1);
        if (c.ok || c.open) {
            d->n_held++;
            taken++;
        }
        if (c.open) continue;
        *status = c.ok ? buf_append(out, d->held, (size_t)d->n_held) : put_replacement(out);
        d->n_held = 0;
    }
    return taken;
}

int detok_push_bytes(struct detok *d, const char *bytes, size_t n, struct buf *out) {
    int r = 0;
    size_t i = complete_held(d, bytes, n, out, &r);
    while (r == 0 && i < n) {
        size_t valid = valid_prefix(bytes + i, n - i);
        r = buf_append(out, bytes + i, valid);
        i += valid;
        if (r < 0 || i == n) break;
        struct utf8_char c = utf8_next(bytes + i, n - i);
        if (c.open) {
            memcpy(d->held, bytes + i, (size_t)c.len);
            d->n_held = c.len;
        } else {
            r = put_replacement(out);
        }
        i += (size_t)c.len;
    }
    return r;
}

int detok_push(struct detok *d, const struct tokenizer *t, int32_t id, struct buf *out) {
    if (d->skip_special && tokenizer_is_special(t, id)) return 0;
    struct tokenizer_text piece = tokenizer_piece(t, id);
    return detok_push_bytes(d, piece.data, piece.n, out);
}

int detok_flush(struct detok *d, struct buf *out) {
    if (d->n_held == 0) return 0;
    d->n_held = 0;
    return put_replacement(out);
}
