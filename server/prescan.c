#include "server/prescan.h"

#include <errno.h>
#include <string.h>

#include "kernels/error.h"
#include "server/token_scan.h"

struct cursor {
    char *s;
    size_t n, i;
    int depth;
    size_t containers, values;
    struct prescan *found;
    const struct prescan_limits *limits;
};

/* Leaves i on the closing quotation mark, or at the end of an open string. */
static void skip_string(struct cursor *c) {
    for (c->i++; c->i < c->n && c->s[c->i] != '"'; c->i++)
        if (c->s[c->i] == '\\') c->i++;
}

static void note_key(struct cursor *c, size_t start) {
    size_t end = c->i;
    while (end < c->n && end + 1 < c->n && strchr(" \t\r\n", c->s[end + 1]) && c->s[end + 1]) end++;
    if (end + 1 >= c->n || c->s[end + 1] != ':') return;
    size_t n = c->i - start - 1;
    if (n >= sizeof c->found->key) n = sizeof c->found->key - 1;
    memcpy(c->found->key, c->s + start + 1, n);
    c->found->key[n] = 0;
}

static bool is_number_byte(char c) {
    return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
}

/* The digits' value; false when 64 bits do not hold it. */
static bool digits(uint64_t *ret, const char *s, size_t n) {
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned digit = (unsigned)(s[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *ret = value;
    return true;
}

/* Leaves i on the number's last byte. */
static int scan_number(struct cursor *c, struct error *err) {
    size_t start = c->i;
    bool integer = true;
    for (; c->i < c->n && is_number_byte(c->s[c->i]); c->i++)
        if (c->i > start && (c->s[c->i] < '0' || c->s[c->i] > '9')) integer = false;
    size_t length = c->i-- - start;
    if (!integer || length < 19) return 0;

    bool negative = c->s[start] == '-';
    uint64_t value = 0;
    bool fits = digits(&value, c->s + start + negative, length - negative);
    if (fits && value <= (uint64_t)INT64_MAX + negative) return 0;
    if (!fits || negative || c->depth != 1 || strcmp(c->found->key, "seed") != 0)
        return error_set(err, -ERANGE, "the integer at byte %zu is out of range", start);
    c->found->has_seed = true;
    c->found->seed = value;
    memset(c->s + start, ' ', length);
    c->s[start] = '0';
    return 0;
}

/* Token ids come by the hundred thousand, and jansson would take 40 bytes for each. */
static void take_ids(struct cursor *c) {
    struct prescan *found = c->found;
    if (c->depth != 1 || !c->limits->ids || strcmp(found->key, c->limits->ids) != 0 || found->ids)
        return;
    char *text = c->s + c->i;
    size_t length = token_scan(&found->ids, &found->n_ids, text, c->n - c->i);
    if (length < 3) return;
    memset(text, ' ', length);
    memcpy(text, "[0", 2);
    text[length - 1] = ']';
}

static int scan_open(struct cursor *c, struct error *err) {
    if (c->s[c->i] == '[') take_ids(c);
    if (++c->depth > c->limits->max_depth)
        return error_set(err, -E2BIG, "nested deeper than %d levels", c->limits->max_depth);
    if (++c->containers > c->limits->max_containers)
        return error_set(err, -E2BIG, "more than %zu arrays and objects",
                         c->limits->max_containers);
    return 0;
}

static int scan_one(struct cursor *c, struct error *err) {
    char byte = c->s[c->i];
    size_t start = c->i;
    switch (byte) {
    case '"':
        c->values++;
        skip_string(c);
        if (c->depth == 1 && c->i < c->n) note_key(c, start);
        return 0;
    case '{':
    case '[':
        return scan_open(c, err);
    case '}':
    case ']':
        c->depth--;
        return 0;
    case 't':
    case 'f':
    case 'n':
        c->values++;
        return 0;
    default:
        break;
    }
    if (byte != '-' && (byte < '0' || byte > '9')) return 0;
    c->values++;
    return scan_number(c, err);
}

int prescan_json(struct prescan *ret, char *text, size_t n, const struct prescan_limits *limits,
                 struct error *err) {
    *ret = (struct prescan){0};
    struct cursor c = {.s = text, .n = n, .found = ret, .limits = limits};
    for (; c.i < n; c.i++) {
        int r = scan_one(&c, err);
        if (r < 0) return r;
        if (c.values > limits->max_values)
            return error_set(err, -E2BIG, "more than %zu values", limits->max_values);
    }
    return 0;
}
