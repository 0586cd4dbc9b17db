#include "engine/packed.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pvq.h"
#include "kernels/error.h"

/* -- The numbers ------------------------------------------------------------------------------ */

static int norm_of(const int *v, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += abs(v[i]);
    return sum;
}

/* Counts in v through the box -k..k in n dimensions; false past the last. */
static bool next_in_box(int *v, int n, int k) {
    for (int i = 0; i < n; i++) {
        if (++v[i] <= k) return true;
        v[i] = -k;
    }
    return false;
}

static void check_bijection(const struct pvq *p, int n, int k) {
    struct error err;
    uint64_t count = pvq_count(p, n, k)->limb[0], found = 0;
    uint8_t *seen = calloc((size_t)count, 1);
    int v[8], back[8];
    cr_assert(seen);
    for (int i = 0; i < n; i++) v[i] = -k;
    do {
        struct pvq_number number;
        if (norm_of(v, n) != k) continue;
        pvq_index(p, v, n, k, &number);
        for (int i = 1; i < PVQ_LIMBS; i++) cr_assert_eq(number.limb[i], 0);
        cr_assert_lt(number.limb[0], count, "N(%d, %d)", n, k);
        cr_assert_eq(seen[number.limb[0]]++, 0, "two vectors of one number");
        cr_assert(number.limb[0] >> pvq_bits(p, n, k) == 0);
        cr_assert_eq(pvq_vector(p, &number, n, k, back, &err), 0);
        cr_assert(memcmp(v, back, (size_t)n * sizeof *v) == 0, "N(%d, %d)", n, k);
        found++;
    } while (next_in_box(v, n, k));
    cr_assert_eq(found, count, "N(%d, %d): %lu", n, k, (unsigned long)found);
    struct pvq_number past = {{count}};
    cr_assert_eq(pvq_vector(p, &past, n, k, back, &err), -EBADMSG);
    free(seen);
}

Test(packed, numbers_and_vectors_are_one_to_one) {
    struct pvq *p;
    struct error err;
    cr_assert_eq(pvq_new(&p, 8, 12, &err), 0);
    for (int k = 0; k <= 12; k++) check_bijection(p, 1, k);
    for (int k = 0; k <= 12; k++) check_bijection(p, 2, k);
    for (int k = 0; k <= 12; k++) check_bijection(p, 3, k);
    for (int k = 0; k <= 7; k++) check_bijection(p, 4, k);
    for (int k = 0; k <= 4; k++) check_bijection(p, 5, k);
    for (int k = 0; k <= 3; k++) check_bijection(p, 7, k);
    cr_assert_eq(pvq_count(p, 3, 2)->limb[0], 18, "Fischer's table");
    cr_assert_eq(pvq_bits(p, 1, 0), 0);
    pvq_free(p);
}

/* N(n, k) = sum over i of 2^i C(n, i) C(k - 1, i - 1), where 64 bits hold it. */
Test(packed, counts_agree_with_the_closed_form) {
    struct pvq *p;
    struct error err;
    static uint64_t choose[64][64];
    cr_assert_eq(pvq_new(&p, 16, 20, &err), 0);
    for (int n = 0; n < 64; n++)
        for (int k = 0; k <= n; k++)
            choose[n][k] = k == 0 || k == n ? 1 : choose[n - 1][k - 1] + choose[n - 1][k];
    for (int n = 1; n <= 16; n++)
        for (int k = 1; k <= 20; k++) {
            uint64_t sum = 0;
            for (int i = 1; i <= n && i <= k; i++)
                sum += (choose[n][i] * choose[k - 1][i - 1]) << i;
            cr_assert_eq(pvq_count(p, n, k)->limb[0], sum, "N(%d, %d)", n, k);
            cr_assert_eq(pvq_count(p, n, k)->limb[1], 0);
        }
    pvq_free(p);
}

Test(packed, the_largest_vectors_come_back) {
    struct pvq *p;
    struct error err;
    uint32_t state = 1;
    cr_assert_eq(pvq_new(&p, PVQ_MAX_DIMS, PVQ_MAX_NORM, &err), 0);
    int bits = pvq_bits(p, PVQ_MAX_DIMS, PVQ_MAX_NORM);
    cr_assert(bits > 400 && bits < 64 * PVQ_LIMBS, "%d", bits);
    for (int trial = 0; trial < 200; trial++) {
        int v[PVQ_MAX_DIMS] = {0}, back[PVQ_MAX_DIMS], n = 1 + trial % PVQ_MAX_DIMS, left;
        struct pvq_number number;
        left = trial < 4 ? PVQ_MAX_NORM : trial * 5;
        for (int k = left; k > 0; k--) {
            state = state * 1664525u + 1013904223u;
            int at = trial < 2 ? n - 1 : (int)(state >> 16) % n;
            v[at] += v[at] < 0 || (v[at] == 0 && state >> 31) ? -1 : 1;
        }
        cr_assert_eq(norm_of(v, n), left);
        pvq_index(p, v, n, left, &number);
        cr_assert_eq(pvq_vector(p, &number, n, left, back, &err), 0);
        cr_assert(memcmp(v, back, (size_t)n * sizeof *v) == 0);
    }
    pvq_free(p);
}

/* -- Blocks ----------------------------------------------------------------------------------- */

/* A block whose q and p are drawn around a middle, as a quantizer's are, or evenly. */
static void *make_block(struct bcq_view *v, const struct bcq_spec *spec, bool even) {
    struct bcq_layout l;
    uint32_t state = 7;
    bcq_layout(&l, spec);
    uint8_t *block = aligned_alloc(BCQ_ALIGN, (size_t)l.total);
    cr_assert(block);
    memset(block, 0, (size_t)l.total);
    bcq_format(v, block, spec);
    memset(block + l.shape, 1, (size_t)spec->rows * (size_t)spec->bits);
    for (int row = 0; row < spec->rows; row++)
        for (int g = 0; g < l.n_groups; g++)
            for (int which = 0; which < 2; which++) {
                int width = which ? spec->bias_bits : spec->scale_bits, value = 0;
                for (int i = 0; i < 4; i++) {
                    state = state * 1664525u + 1013904223u;
                    value += (int)(state >> 16) % (1 << width);
                }
                value = even ? (int)(state >> 16) % (1 << width) : value / 4;
                if (which) value -= 1 << (width - 1);
                bcq_put(block + (which ? l.p : l.q) +
                            (size_t)row * (which ? l.p_stride : l.q_stride),
                        width, g, (unsigned)value);
            }
    for (size_t i = 0; i < (size_t)spec->rows * (size_t)spec->bits * (size_t)l.plane_words; i++) {
        state = state * 1664525u + 1013904223u;
        memcpy(block + l.planes + 4 * i, &state, 4);
    }
    return block;
}

static void check_round_trip(int rows, int cols, int scale_bits, int bias_bits) {
    struct bcq_spec spec = {.kind = BCQ_COMPACT,
                            .rows = rows,
                            .cols = cols,
                            .bits = 3,
                            .group = 16,
                            .scale_bits = scale_bits,
                            .bias_bits = bias_bits};
    struct bcq_view v, plain;
    struct packed_view back;
    struct error err;
    void *block = make_block(&v, &spec, false), *packed;
    size_t n;
    cr_assert_eq(bcq_parse(&plain, block, (size_t)v.layout.total, &err), 0, "%s", err.text);
    cr_assert_eq(packed_make(&packed, &n, &plain, block, &err), 0, "%s", err.text);
    cr_assert_lt(n, v.layout.total);
    cr_assert(packed_is(packed, n) && !packed_is(block, n));
    cr_assert_eq(packed_open(&back, packed, n, &err), 0, "%s", err.text);
    cr_assert_eq(memcmp(&back.bcq.spec, &spec, sizeof spec), 0);
    cr_assert_eq(memcmp(back.bcq.q, v.q, (size_t)rows * v.layout.q_stride), 0);
    cr_assert_eq(memcmp(back.bcq.p, v.p, (size_t)rows * v.layout.p_stride), 0);
    float *a = malloc((size_t)cols * sizeof *a), *b = malloc((size_t)cols * sizeof *b);
    cr_assert(a && b);
    for (int row = 0; row < rows; row++) {
        bcq_expand_row(&plain, row, a);
        bcq_expand_row(&back.bcq, row, b);
        cr_assert_eq(memcmp(a, b, (size_t)cols * sizeof *a), 0);
    }
    free(a);
    free(b);
    packed_close(&back);
    free(packed);
    free(block);
}

Test(packed, blocks_come_back_to_the_bit) {
    check_round_trip(64, 256, 4, 5);
    check_round_trip(37, 592, 4, 5);
    check_round_trip(33, 2064, 4, 5); /* rows of three pieces */
    check_round_trip(64, 256, 8, 8);
}

Test(packed, what_would_not_shrink_is_refused) {
    struct bcq_spec spec = {.kind = BCQ_COMPACT,
                            .rows = 64,
                            .cols = 512,
                            .bits = 2,
                            .group = 16,
                            .scale_bits = 4,
                            .bias_bits = 5};
    struct bcq_view v;
    struct error err;
    void *block = make_block(&v, &spec, true), *packed;
    size_t n;
    cr_assert_eq(packed_make(&packed, &n, &v, block, &err), -ERANGE);
    v.spec.kind = BCQ_FREE;
    cr_assert_eq(packed_make(&packed, &n, &v, block, &err), -ENOTSUP);
    free(block);
}

Test(packed, damaged_blocks_are_refused) {
    struct bcq_spec spec = {.kind = BCQ_COMPACT,
                            .rows = 64,
                            .cols = 512,
                            .bits = 2,
                            .group = 16,
                            .scale_bits = 4,
                            .bias_bits = 5};
    struct bcq_view v;
    struct packed_view back = {0};
    struct error err;
    void *block = make_block(&v, &spec, false), *packed;
    size_t n;
    cr_assert_eq(packed_make(&packed, &n, &v, block, &err), 0, "%s", err.text);
    size_t stream = (size_t)v.layout.q + (size_t)(v.layout.total - v.layout.shape);
    uint8_t *copy = aligned_alloc(BCQ_ALIGN, n), *bytes = packed;
    cr_assert(copy);
    for (size_t cut = 0; cut < n; cut += BCQ_ALIGN)
        cr_assert_eq(packed_open(&back, packed, cut, &err), -EBADMSG, "cut to %zu", cut);
    static const struct {
        int at; /* in the stream */
        uint8_t value;
        const char *words;
    } cases[] = {{0, 0x7f, "a field"},       /* another center */
                 {2, 0xff, "norms of"},      /* width of norms */
                 {1, 0xff, NULL},            /* larger norms */
                 {-1, 0x80, "bits follow"}}; /* past the end */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(copy, bytes, n);
        copy[cases[i].at < 0 ? n - 1 : stream + (size_t)cases[i].at] = cases[i].value;
        cr_assert_eq(packed_open(&back, copy, n, &err), -EBADMSG, "case %zu", i);
        if (cases[i].words) cr_assert(strstr(err.text, cases[i].words), "%zu: %s", i, err.text);
    }
    /* An index past the pyramid: all ones from the first norm on. */
    memcpy(copy, bytes, n);
    memset(copy + stream + 3, 0xff, 40);
    cr_assert_eq(packed_open(&back, copy, n, &err), -EBADMSG);
    /* A changed byte is no more than another block or a refusal. */
    for (size_t at = 0; at < n; at += at < 128 ? 1 : 37) {
        memcpy(copy, bytes, n);
        copy[at] ^= (uint8_t)(1 + at % 255);
        int r = packed_open(&back, copy, n, &err);
        cr_assert(r == 0 || r == -EBADMSG, "byte %zu: %d", at, r);
        if (r == 0) packed_close(&back);
    }
    cr_assert_eq(packed_open(&back, bytes + 64, n - 64, &err), -EBADMSG);
    free(copy);
    free(packed);
    free(block);
}
