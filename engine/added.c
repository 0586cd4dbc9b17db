#include "engine/added.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pattern.h"
#include "engine/utf8.h"
#include "kernels/error.h"

/* What Unicode's regular expressions (UTS 18) call a word character: Alphabetic, marks, digits,
 * connectors, joiners. The three ranges are the letters among the symbols. */
static const char word_regex[] = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}"
                                 "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
                                 "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]";

static int compare_tokens(const void *left, const void *right) {
    const struct added_token *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->n < b->n ? a->n : b->n);
    if (order) return order;
    return a->n < b->n ? -1 : a->n > b->n;
}

static void copy_tokens(struct added *a, const struct added_token *tokens, size_t n) {
    char *at = a->texts;
    for (size_t i = 0; i < n; i++) {
        if (tokens[i].n == 0) continue;
        struct added_token *copy = &a->tokens[a->n++];
        *copy = tokens[i];
        memcpy(at, tokens[i].text, tokens[i].n);
        copy->text = at;
        at += tokens[i].n;
    }
    qsort(a->tokens, a->n, sizeof *a->tokens, compare_tokens);
    size_t i = 0;
    for (int byte = 0; byte < 257; byte++) {
        while (i < a->n && (unsigned char)a->tokens[i].text[0] < byte) i++;
        a->first[byte] = i;
    }
}

int added_init(struct added *a, const struct added_token *tokens, size_t n, struct error *err) {
    *a = (struct added){0};
    size_t n_bytes = 0;
    bool single_word = false;
    for (size_t i = 0; i < n; i++) {
        n_bytes += tokens[i].n;
        single_word = single_word || tokens[i].single_word;
    }
    a->tokens = calloc(n + 1, sizeof *a->tokens);
    a->texts = malloc(n_bytes + 1);
    if (!a->tokens || !a->texts) {
        added_free(a);
        return error_set(err, -ENOMEM, "added_tokens: out of memory");
    }
    copy_tokens(a, tokens, n);
    int r = single_word ? pattern_new(&a->word, word_regex, strlen(word_regex), false, err) : 0;
    if (r < 0) added_free(a);
    return r;
}

void added_free(struct added *a) {
    free(a->tokens);
    free(a->texts);
    pattern_free(a->word);
    *a = (struct added){0};
}

/* Narrows [lo, hi), sorted tokens that agree in their first `depth` bytes, to those with `byte`
 * next. A token that ends there sorts first and is left out. */
static void narrow(const struct added *a, size_t depth, unsigned char byte, size_t *lo,
                   size_t *hi) {
    size_t bounds[2];
    for (int side = 0; side < 2; side++) {
        size_t low = *lo, high = *hi;
        while (low < high) {
            size_t mid = low + (high - low) / 2;
            const struct added_token *t = &a->tokens[mid];
            int value = t->n > depth ? (unsigned char)t->text[depth] : -1;
            if (value < byte + side)
                low = mid + 1;
            else
                high = mid;
        }
        bounds[side] = low;
    }
    *lo = bounds[0];
    *hi = bounds[1];
}

static const struct added_token *longest_at(const struct added *a, const char *text, size_t n) {
    unsigned char first = (unsigned char)text[0];
    size_t lo = a->first[first], hi = a->first[first + 1];
    const struct added_token *best = NULL;
    for (size_t depth = 1; lo < hi; depth++) {
        if (a->tokens[lo].n == depth) best = &a->tokens[lo];
        if (depth == n) break;
        narrow(a, depth, (unsigned char)text[depth], &lo, &hi);
    }
    return best;
}

static bool is_word(const struct added *a, struct pattern_work *work, struct utf8_char c) {
    char bytes[UTF8_MAX];
    size_t start, end;
    return c.ok && pattern_find(a->word, work, bytes, (size_t)utf8_put(bytes, c.code), 0, &start,
                                &end) == 1;
}

static bool stands_alone(const struct added *a, struct pattern_work *work, const char *text,
                         size_t n, size_t start, size_t end) {
    if (start > 0 && is_word(a, work, utf8_last(text, start))) return false;
    return end == n || !is_word(a, work, utf8_next(text + end, n - end));
}

/* Takes white space along; false when none of the token is left, since what came before has
 * taken all of it (only a token that is itself white space). */
static bool strip(const struct added_token *token, const char *text, size_t n, size_t gap,
                  struct added_match *m) {
    struct utf8_char c;
    if (token->lstrip && m->start < gap) m->start = gap;
    if (token->lstrip)
        while (m->start > gap && (c = utf8_last(text, m->start)).ok && utf8_is_space(c.code))
            m->start -= (size_t)c.len;
    if (token->rstrip)
        while (m->end < n && (c = utf8_next(text + m->end, n - m->end)).ok && utf8_is_space(c.code))
            m->end += (size_t)c.len;
    return m->start < m->end;
}

bool added_next(const struct added *a, struct pattern_work *work, struct added_scan *scan,
                const char *text, size_t n, bool parse_special, struct added_match *ret) {
    if (a->n == 0) return false;
    for (size_t at = scan->from; at < n; at++) {
        const struct added_token *token = longest_at(a, text + at, n - at);
        if (!token) continue;
        size_t end = at + token->n;
        struct added_match match = {at, end, token->id};
        if ((!parse_special && token->special) ||
            (token->single_word && !stands_alone(a, work, text, n, at, end)) ||
            !strip(token, text, n, scan->gap, &match)) {
            at = end - 1;
            continue;
        }
        scan->gap = match.end;
        scan->from = end;
        *ret = match;
        return true;
    }
    return false;
}
