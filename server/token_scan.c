#include "server/token_scan.h"

#include <stdbool.h>
#include <stdlib.h>

struct reader {
    const char *s;
    size_t n, i;
};

static char next(const struct reader *r) { return r->i < r->n ? r->s[r->i] : 0; }

static void skip_space(struct reader *r) {
    char c;
    while ((c = next(r)) == ' ' || c == '\n' || c == '\r' || c == '\t') r->i++;
}

static bool read_id(struct reader *r, int32_t *ret) {
    int64_t value = 0;
    size_t start = r->i;
    for (char c; (c = next(r)) >= '0' && c <= '9' && value <= INT32_MAX; r->i++)
        value = value * 10 + (c - '0');
    size_t length = r->i - start;
    if (length == 0 || value > INT32_MAX || (length > 1 && r->s[start] == '0')) return false;
    *ret = (int32_t)value;
    return true;
}

/* Up to the bracket; ids may be NULL, and n counts them all the same. */
static bool read_array(struct reader *r, int32_t *ids, size_t *ret_n) {
    size_t n = 0;
    for (r->i++;; r->i++) {
        int32_t id;
        skip_space(r);
        if (!read_id(r, &id)) return false;
        if (ids) ids[n] = id;
        n++;
        skip_space(r);
        if (next(r) == ']') break;
        if (next(r) != ',') return false;
    }
    r->i++;
    *ret_n = n;
    return true;
}

size_t token_scan(int32_t **ret_ids, size_t *ret_n, const char *s, size_t n) {
    struct reader count = {s, n, 0}, fill = count;
    size_t n_ids = 0;
    if (!read_array(&count, NULL, &n_ids)) return 0;
    int32_t *ids = malloc(n_ids * sizeof *ids);
    if (!ids || !read_array(&fill, ids, &n_ids)) {
        free(ids);
        return 0;
    }
    *ret_ids = ids;
    *ret_n = n_ids;
    return fill.i;
}
