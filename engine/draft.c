#include "engine/draft.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { N_LENGTHS = DRAFT_LONGEST - DRAFT_SHORTEST + 1, FIRST_SIZE = 256 };

static int32_t *slot_of(const struct draft *d, const int32_t *run, int length) {
    uint64_t hash = 0;
    for (int i = 0; i < length; i++) hash = (hash ^ (uint32_t)run[i]) * 0x9e3779b97f4a7c15u;
    size_t at = (size_t)(hash >> 32) & (size_t)(d->size - 1);
    return &d->ends[(size_t)(length - DRAFT_SHORTEST) * (size_t)d->size + at];
}

/* Runs that share a slot push each other out: the fuller the table, the fewer are found. */
static void fit_size(struct draft *d, int n) {
    int size = d->size ? d->size : FIRST_SIZE;
    while (size / 2 < n && size <= INT32_MAX / 2) size *= 2;
    if (size == d->size) return;
    int32_t *ends = calloc((size_t)size, N_LENGTHS * sizeof *ends);
    if (!ends) return;
    free(d->ends);
    *d = (struct draft){.ends = ends, .size = size};
}

/* The last token's runs stay out until something follows them. */
static void learn(struct draft *d, const int32_t *tokens, int n) {
    for (; d->n_known < n - 1; d->n_known++)
        for (int length = DRAFT_SHORTEST; length <= DRAFT_LONGEST; length++) {
            int start = d->n_known + 1 - length;
            if (start >= 0) *slot_of(d, tokens + start, length) = d->n_known + 1;
        }
}

int draft_next(struct draft *d, const int32_t *tokens, int n, int32_t *out, int most) {
    fit_size(d, n);
    if (!d->ends) return 0;
    learn(d, tokens, n);
    for (int length = DRAFT_LONGEST; length >= DRAFT_SHORTEST; length--) {
        if (length >= n) continue;
        const int32_t *end = tokens + n - length;
        int next = *slot_of(d, end, length);
        if (next < length || memcmp(tokens + next - length, end, (size_t)length * sizeof *end) != 0)
            continue;
        for (int i = 0; i < most; i++) out[i] = next + i < n ? tokens[next + i] : out[next + i - n];
        return most;
    }
    return 0;
}

void draft_free(struct draft *d) {
    free(d->ends);
    *d = (struct draft){0};
}
