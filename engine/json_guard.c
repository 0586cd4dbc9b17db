#include "engine/json_guard.h"

#include <errno.h>

#include "kernels/error.h"

/* Every element costs one of these characters outside strings; a text that is not JSON may be
 * counted wrongly, and jansson refuses it anyway. */
static int scan(const char *s, size_t n, const struct json_guard_limits *limits, const char *what,
                struct error *err) {
    size_t items = 0;
    int depth = 0;
    for (size_t i = 0; i < n; i++) {
        switch (s[i]) {
        case '"':
            for (i++; i < n && s[i] != '"'; i++)
                if (s[i] == '\\') i++;
            break;
        case '[':
        case '{':
            if (++depth > limits->max_depth)
                return error_set(err, -E2BIG, "%s: nested deeper than %d levels", what,
                                 limits->max_depth);
            items++;
            break;
        case ']':
        case '}':
            depth--;
            break;
        case ',':
        case ':':
            items++;
            break;
        default:
            break;
        }
        if (items > limits->max_items)
            return error_set(err, -E2BIG, "%s: more than %zu elements", what, limits->max_items);
    }
    return 0;
}

int json_guard_parse(json_t **ret, const void *text, size_t n,
                     const struct json_guard_limits *limits, const char *what, struct error *err) {
    int r = scan(text, n, limits, what, err);
    if (r < 0) return r;
    size_t flags = JSON_REJECT_DUPLICATES | (limits->allow_nul ? JSON_ALLOW_NUL : 0);
    json_error_t where;
    json_t *value = json_loadb(text, n, flags, &where);
    /* Out of memory leaves jansson without a word as a rule. */
    if (!value && (!*where.text || json_error_code(&where) == json_error_out_of_memory))
        return error_set(err, -ENOMEM, "%s: out of memory", what);
    if (!value)
        return error_set(err, -EBADMSG, "%s: not valid JSON: %s (byte %d)", what, where.text,
                         where.position);
    *ret = value;
    return 0;
}
