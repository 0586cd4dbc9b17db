#include "engine/utf8.h"

/* Well-formed sequences by lead byte: length and the range of the second byte (the Unicode
 * Standard, table 3-7); the range is what keeps out surrogates and overlong forms. */
static int lead_length(unsigned char c, unsigned char *lo, unsigned char *hi) {
    *lo = 0x80;
    *hi = 0xbf;
    if (c < 0x80) return 1;
    if (c < 0xc2 || c > 0xf4) return 0;
    if (c < 0xe0) return 2;
    if (c == 0xe0) *lo = 0xa0;
    if (c == 0xed) *hi = 0x9f;
    if (c < 0xf0) return 3;
    if (c == 0xf0) *lo = 0x90;
    if (c == 0xf4) *hi = 0x8f;
    return 4;
}

struct utf8_char utf8_next(const char *text, size_t n) {
    static const unsigned char lead_mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    const unsigned char *s = (const unsigned char *)text;
    unsigned char lo, hi;
    int len = lead_length(s[0], &lo, &hi);
    struct utf8_char c = {.len = 1};
    if (len == 0) return c;
    c.code = s[0] & lead_mask[len];
    for (; c.len < len; c.len++) {
        if ((size_t)c.len == n) {
            c.open = true;
            return c;
        }
        unsigned char b = s[c.len];
        if (b < lo || b > hi) return c;
        c.code = c.code << 6 | (b & 0x3f);
        lo = 0x80;
        hi = 0xbf;
    }
    c.ok = true;
    return c;
}

struct utf8_char utf8_last(const char *text, size_t n) {
    for (size_t back = 1; back <= UTF8_MAX && back <= n; back++) {
        struct utf8_char c = utf8_next(text + n - back, back);
        if (c.ok && (size_t)c.len == back) return c;
    }
    return (struct utf8_char){.len = 1};
}

int utf8_put(char out[UTF8_MAX], uint32_t code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    int len = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = len - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    out[0] = (char)(lead[len] | code);
    return len;
}

bool utf8_check(const char *text, size_t n) {
    for (size_t i = 0; i < n;) {
        struct utf8_char c = utf8_next(text + i, n - i);
        if (!c.ok) return false;
        i += (size_t)c.len;
    }
    return true;
}

bool utf8_is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

static bool is_stripped(struct utf8_char c) {
    return c.ok && (utf8_is_space(c.code) || (c.code >= 0x1c && c.code <= 0x1f));
}

void utf8_trim(const char **text, size_t *n) {
    struct utf8_char c;
    while (*n && is_stripped(c = utf8_next(*text, *n))) {
        *text += c.len;
        *n -= (size_t)c.len;
    }
    while (*n && is_stripped(c = utf8_last(*text, *n))) *n -= (size_t)c.len;
}
