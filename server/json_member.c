#include "server/json_member.h"

#include <string.h>

/* The end of the string that begins at the quote; end when it has none. */
static const char *skip_string(const char *p, const char *end) {
    for (p++; p < end && *p != '"'; p++)
        if (*p == '\\' && p + 1 < end) p++;
    return p < end ? p + 1 : end;
}

static const char *skip_blanks(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
    return p;
}

bool json_member(const char *text, size_t n, const char *name) {
    const char *end = text + n;
    size_t length = strlen(name);
    int depth = 0;
    for (const char *p = text; p < end;) {
        if (*p == '"') {
            const char *first = p + 1;
            p = skip_string(p, end);
            bool same = (size_t)(p - first) == length + 1 && !memcmp(first, name, length);
            const char *next = skip_blanks(p, end);
            if (same && depth == 1 && next < end && *next == ':') return true;
            continue;
        }
        if (*p == '{' || *p == '[') depth++;
        if (*p == '}' || *p == ']') depth--;
        p++;
    }
    return false;
}
