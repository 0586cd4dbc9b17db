#include "engine/nfc.h"

#include <errno.h>

#include "engine/buf.h"
#include "engine/utf8.h"

#ifndef GPTQT_UTF8PROC

bool nfc_available(void) { return false; }

int nfc_append(struct buf *out, const char *text, size_t n) {
    (void)out, (void)text, (void)n;
    return -ENOTSUP;
}

#else
#include <stdlib.h>
#include <utf8proc.h>

enum {
    CLASSES = 256,      /* combining classes */
    DECOMPOSED_MAX = 18 /* no canonical decomposition is longer than 4; compatibility ones are */
};

bool nfc_available(void) { return true; }

static int combining_class(utf8proc_int32_t code) {
    return utf8proc_get_property(code)->combining_class;
}

/* Sorts a run of combining marks by class, stably. utf8proc's own reordering takes quadratic
 * time on a long run, and requests may hold one. */
static int sort_run(utf8proc_int32_t *run, size_t n, struct buf *scratch) {
    size_t start[CLASSES + 1] = {0};
    for (size_t i = 0; i < n; i++) start[combining_class(run[i]) + 1]++;
    for (int c = 0; c < CLASSES; c++) start[c + 1] += start[c];
    scratch->len = 0;
    int r = buf_reserve(scratch, n * sizeof *run);
    if (r < 0) return r;
    utf8proc_int32_t *sorted = (utf8proc_int32_t *)(void *)scratch->data;
    for (size_t i = 0; i < n; i++) sorted[start[combining_class(run[i])]++] = run[i];
    for (size_t i = 0; i < n; i++) run[i] = sorted[i];
    return 0;
}

static int reorder(utf8proc_int32_t *codes, size_t n, struct buf *scratch) {
    for (size_t i = 0; i < n; i++) {
        if (combining_class(codes[i]) == 0) continue;
        size_t end = i;
        bool sorted = true;
        for (; end < n && combining_class(codes[end]) != 0; end++)
            if (end > i && combining_class(codes[end]) < combining_class(codes[end - 1]))
                sorted = false;
        int r = sorted ? 0 : sort_run(codes + i, end - i, scratch);
        if (r < 0) return r;
        i = end - 1;
    }
    return 0;
}

/* codes: canonical decomposition of well-formed text. */
static int decompose(struct buf *codes, const char *text, size_t n) {
    codes->len = 0;
    for (size_t i = 0; i < n;) {
        struct utf8_char c = utf8_next(text + i, n - i);
        utf8proc_int32_t parts[DECOMPOSED_MAX];
        int boundary = 0;
        utf8proc_ssize_t k = utf8proc_decompose_char((utf8proc_int32_t)c.code, parts,
                                                     DECOMPOSED_MAX, UTF8PROC_DECOMPOSE, &boundary);
        if (k < 0 || k > DECOMPOSED_MAX) return -ENOTSUP;
        int r = buf_append(codes, parts, (size_t)k * sizeof *parts);
        if (r < 0) return r;
        i += (size_t)c.len;
    }
    return 0;
}

static int compose(struct buf *out, const char *text, size_t n, struct buf *codes,
                   struct buf *scratch) {
    int r = decompose(codes, text, n);
    if (r < 0) return r;
    utf8proc_int32_t *v = (utf8proc_int32_t *)(void *)codes->data;
    size_t count = codes->len / sizeof *v;
    r = reorder(v, count, scratch);
    if (r < 0) return r;
    utf8proc_ssize_t k =
        utf8proc_normalize_utf32(v, (utf8proc_ssize_t)count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (k < 0) return -ENOMEM;
    for (utf8proc_ssize_t i = 0; i < k && r == 0; i++) {
        char bytes[UTF8_MAX];
        r = buf_append(out, bytes, (size_t)utf8_put(bytes, (uint32_t)v[i]));
    }
    return r;
}

/* U+0300 is the first character that composes with one before it, or is reordered. */
static bool is_plain(const char *text, size_t n) {
    for (size_t i = 0; i < n;) {
        struct utf8_char c = utf8_next(text + i, n - i);
        if (!c.ok || c.code >= 0x300) return false;
        i += (size_t)c.len;
    }
    return true;
}

int nfc_append(struct buf *out, const char *text, size_t n) {
    if (is_plain(text, n)) return buf_append(out, text, n);
    struct buf codes = {0}, scratch = {0};
    int r = 0;
    for (size_t i = 0; i < n && r == 0;) {
        size_t end = i;
        struct utf8_char c = {.len = 0};
        while (end < n && (c = utf8_next(text + end, n - end)).ok) end += (size_t)c.len;
        if (end > i) r = compose(out, text + i, end - i, &codes, &scratch);
        if (r == 0 && end < n) {
            r = buf_append(out, text + end, (size_t)c.len);
            end += (size_t)c.len;
        }
        i = end;
    }
    buf_free(&codes);
    buf_free(&scratch);
    return r;
}
#endif
