#include "engine/stop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "kernels/error.h"

/* One string as a Knuth-Morris-Pratt automaton: `state` bytes of it end the text so far. */
struct stop_string {
    char *text;
    size_t n, state;
    uint16_t *border; /* (n) of text[0..i]: the longest proper beginning that is also its end */
};

static int string_init(struct stop_string *s, const char *text, size_t n) {
    s->text = malloc(n);
    s->border = calloc(n, sizeof *s->border);
    if (!s->text || !s->border) return -ENOMEM;
    memcpy(s->text, text, n);
    s->n = n;
    for (size_t i = 1, k = 0; i < n; i++) {
        while (k && text[i] != text[k]) k = s->border[k - 1];
        if (text[i] == text[k]) k++;
        s->border[i] = (uint16_t)k;
    }
    return 0;
}

static void string_step(struct stop_string *s, char c) {
    while (s->state && s->text[s->state] != c) s->state = s->border[s->state - 1];
    if (s->text[s->state] == c) s->state++;
}

int stop_init(struct stop *s, const char *const *strings, const size_t *lengths, int n,
              struct error *err) {
    *s = (struct stop){.matched = -1};
    if (n < 0 || n > STOP_MAX)
        return error_set(err, -EINVAL, "stop: %d strings, limit %d", n, STOP_MAX);
    for (int i = 0; i < n; i++)
        if (lengths[i] == 0 || lengths[i] > STOP_MAX_BYTES)
            return error_set(err, -EINVAL, "stop: a string of %zu bytes, limits 1 and %d",
                             lengths[i], STOP_MAX_BYTES);
    if (n == 0) return 0;
    s->held = malloc(STOP_MAX_BYTES);
    s->strings = calloc((size_t)n, sizeof *s->strings);
    int r = s->held && s->strings ? 0 : -ENOMEM;
    for (int i = 0; i < n && r == 0; i++) {
        s->n_strings = i + 1;
        r = string_init(&s->strings[i], strings[i], lengths[i]);
    }
    if (r == 0) return 0;
    stop_deinit(s);
    return error_set(err, r, "stop: out of memory");
}

void stop_deinit(struct stop *s) {
    for (int i = 0; i < s->n_strings; i++) {
        free(s->strings[i].text);
        free(s->strings[i].border);
    }
    free(s->strings);
    free(s->held);
    *s = (struct stop){.matched = -1};
}

/* Feeds one byte; s->matched is set when it completes a string. */
static void step(struct stop *s, char c) {
    for (int i = 0; i < s->n_strings; i++) {
        struct stop_string *string = &s->strings[i];
        string_step(string, c);
        if (string->state < string->n) continue;
        if (s->matched < 0 || string->n > s->strings[s->matched].n) s->matched = i;
    }
}

/* Releases the text (held bytes, then the piece's first n) save its last `keep` bytes, which
 * are held from now on. */
static int release(struct stop *s, const char *text, size_t n, size_t keep, struct buf *out) {
    size_t go = s->n_held + n - keep, from_held = go < s->n_held ? go : s->n_held;
    size_t from_text = go - from_held;
    int r = buf_reserve(out, go);
    if (r < 0) return r;
    buf_append(out, s->held, from_held);
    buf_append(out, text, from_text);
    memmove(s->held, s->held + from_held, s->n_held - from_held);
    s->n_held -= from_held;
    memcpy(s->held + s->n_held, text + from_text, n - from_text);
    s->n_held += n - from_text;
    return 0;
}

int stop_push(struct stop *s, const char *text, size_t n, struct buf *out) {
    if (s->matched >= 0) return 1;
    if (s->n_strings == 0) return buf_append(out, text, n);
    size_t taken = 0, keep = 0;
    while (taken < n && s->matched < 0) step(s, text[taken++]);
    if (s->matched >= 0) {
        keep = s->keep ? 0 : s->strings[s->matched].n;
    } else {
        for (int i = 0; i < s->n_strings; i++)
            if (s->strings[i].state > keep) keep = s->strings[i].state;
    }
    int r = release(s, text, taken, keep, out);
    if (s->matched >= 0) s->n_held = 0;
    return r < 0 ? r : s->matched >= 0;
}

int stop_flush(struct stop *s, struct buf *out) {
    int r = buf_append(out, s->held, s->n_held);
    s->n_held = 0;
    return r;
}
