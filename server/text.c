#include "server/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void text_deinit(struct text *t) {
    free(t->data);
    *t = (struct text){0};
}

void text_clear(struct text *t) {
    t->n = 0;
    t->failed = false;
}

char *text_take(struct text *t, size_t *ret_n) {
    if (!t->data) text_add(t, "", 0);
    char *data = t->failed ? NULL : t->data;
    if (ret_n) *ret_n = data ? t->n : 0;
    if (data) t->data = NULL;
    text_deinit(t);
    return data;
}

static bool reserve(struct text *t, size_t n) {
    if (t->failed) return false;
    if (t->size - t->n > n) return true;
    if (n > SIZE_MAX / 4 - t->n) {
        t->failed = true;
        return false;
    }
    size_t size = t->size ? t->size : 128;
    while (size - t->n <= n) size *= 2;
    char *data = realloc(t->data, size);
    if (!data) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->size = size;
    return true;
}

void text_add(struct text *t, const void *bytes, size_t n) {
    if (!reserve(t, n)) return;
    if (n) memcpy(t->data + t->n, bytes, n);
    t->n += n;
    t->data[t->n] = 0;
}

void text_adds(struct text *t, const char *string) { text_add(t, string, strlen(string)); }

void text_addf(struct text *t, const char *format, ...) {
    char line[512];
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n < 0) {
        t->failed = true;
    } else if ((size_t)n < sizeof line) {
        text_add(t, line, (size_t)n);
    } else if (reserve(t, (size_t)n)) {
        vsnprintf(t->data + t->n, (size_t)n + 1, format, again);
        t->n += (size_t)n;
    }
    va_end(again);
}

/* The second byte's range shuts out overlong forms, surrogates and what is past U+10FFFF. */
size_t text_utf8(const char *s, size_t n) {
    const unsigned char *u = (const unsigned char *)s;
    if (n == 0) return 0;
    if (u[0] < 0x80) return 1;
    size_t length = u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
    if (u[0] < 0xc2 || u[0] > 0xf4 || n < length) return 0;
    unsigned low = u[0] == 0xe0 ? 0xa0 : u[0] == 0xf0 ? 0x90 : 0x80;
    unsigned high = u[0] == 0xed ? 0x9f : u[0] == 0xf4 ? 0x8f : 0xbf;
    if (u[1] < low || u[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if ((u[i] & 0xc0) != 0x80) return 0;
    return length;
}

static void add_special(struct text *t, unsigned char c) {
    switch (c) {
    case '"':
        text_add(t, "\\\"", 2);
        return;
    case '\\':
        text_add(t, "\\\\", 2);
        return;
    case '\n':
        text_add(t, "\\n", 2);
        return;
    case '\r':
        text_add(t, "\\r", 2);
        return;
    case '\t':
        text_add(t, "\\t", 2);
        return;
    default:
        text_addf(t, "\\u%04x", (unsigned)c);
        return;
    }
}

void text_add_escaped(struct text *t, const char *bytes, size_t n) {
    size_t start = 0, i = 0;
    while (i < n) {
        unsigned char c = (unsigned char)bytes[i];
        size_t length = text_utf8(bytes + i, n - i);
        bool plain = length > 1 || (c >= ' ' && c < 0x7f && c != '"' && c != '\\');
        if (plain) {
            i += length;
            continue;
        }
        text_add(t, bytes + start, i - start);
        if (length == 0)
            text_add(t, "\xef\xbf\xbd", 3);
        else
            add_special(t, c);
        start = ++i;
    }
    text_add(t, bytes + start, n - start);
}

void text_add_json(struct text *t, const char *string) {
    if (!string) {
        text_adds(t, "null");
        return;
    }
    text_add(t, "\"", 1);
    text_add_escaped(t, string, strlen(string));
    text_add(t, "\"", 1);
}
