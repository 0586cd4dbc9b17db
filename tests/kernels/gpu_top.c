/* Rows of logits in short, against the plain way. */
#include <float.h>

#include "tests/kernels/gpu.h"
#include "tests/support/in_short.h"

enum { N = 20, GUARD = 0x5a };

static void fill(float *x, int row, int width, uint64_t seed) {
    static const float fills[] = {NAN, -INFINITY, INFINITY, 0, -3, FLT_MAX, -FLT_MAX, 1e-45f};
    enum { N_FILLS = sizeof fills / sizeof *fills };
    float *some = normal((size_t)width, seed + (uint64_t)row);
    for (int i = 0; i < width; i++) {
        x[i] = row < N_FILLS ? fills[row] : 4 * some[i];
        if (row == 8) x[i] = i % 3 ? -0.0f : 0.0f;
        if (row == 9) x[i] = (float)(i % 7); /* ties */
        if (row == 10) x[i] = i % 2 ? NAN : -INFINITY;
        if (row == 11) x[i] = (float)i; /* the best are at the end */
        if (row == 12) x[i] = -(float)i;
        if (row == 13 && i % 5 == 2) x[i] = i % 2 ? NAN : INFINITY;
        if (row == 14) x[i] = i % 2 ? FLT_MAX : -FLT_MAX;
        if (row == 15) x[i] = ldexpf(some[i], (int)(i % 200) - 140);
    }
    free(some);
}

static float heat_of(int row) {
    static const float heats[] = {1, 0.7f, 100, 1e-45f, 0.01f, 3};
    return heats[row % 6];
}

static uint64_t gap(uint64_t a, uint64_t b) { return a > b ? a - b : b - a; }

static void compare(const float *x, int row, int width, const uint64_t *ranks,
                    const uint64_t *sums) {
    uint64_t want[BACKEND_TOP], total = 0, here = 0, there = 0;
    int spans = backend_spans(width);
    uint64_t *wanted = malloc((size_t)spans * sizeof *wanted);
    in_short(x, width, heat_of(row), want, wanted);
    expect(!memcmp(ranks, want, sizeof want), "ranks of row %d of %d", row, width);
    for (int i = 0; i < spans; i++) total += wanted[i];
    /* Half of what is promised: the sampler's own sum is of floats. */
    for (int i = 0; i < spans; i++) {
        here += sums[i];
        there += wanted[i];
        expect(gap(here, there) <= total >> 18, "sums of row %d of %d at %d", row, width, i);
    }
    free(wanted);
}

static void check_width(int width, int n_rows, uint64_t seed) {
    size_t spans = (size_t)backend_spans(width), rows = (size_t)n_rows;
    size_t rank_bytes = rows * BACKEND_TOP * sizeof(uint64_t);
    size_t sum_bytes = rows * spans * sizeof(uint64_t);
    float *x = malloc(rows * (size_t)width * sizeof *x), heats[N];
    uint64_t *ranks = malloc(rank_bytes + 8), *sums = malloc(sum_bytes + 8);
    struct error err;
    for (int row = 0; row < n_rows; row++) {
        fill(x + (size_t)row * (size_t)width, row, width, seed);
        heats[row] = heat_of(row);
    }
    memset(ranks, GUARD, rank_bytes + 8);
    memset(sums, GUARD, sum_bytes + 8);
    struct buffer *b = buffer_of(x, rows * (size_t)width);
    struct top_call call = {b, n_rows, width, heats, ranks, sums};
    expect(backend_top(be, &call, &err) == 0, "top of %d", width);
    for (int row = 0; row < n_rows; row++)
        compare(x + (size_t)row * (size_t)width, row, width, ranks + row * BACKEND_TOP,
                sums + (size_t)row * spans);
    expect(ranks[rows * BACKEND_TOP] == 0x5a5a5a5a5a5a5a5au, "top wrote past its ranks");
    expect(sums[rows * spans] == 0x5a5a5a5a5a5a5a5au, "top wrote past its sums");
    backend_buffer_free(be, b);
    free(x);
    free(ranks);
    free(sums);
}

/* Fewer columns than the best that are kept, spans with and without a rest, lists of lists; of many rows, then of few in
 * the same rooms. */
void check_top(void) {
    static const int widths[] = {1, 2, 127, 128, 129, 1009, 2047, 2048, 2049, 32768, 35001};
    enum { N_WIDTHS = sizeof widths / sizeof *widths };
    for (int i = 0; i < N_WIDTHS; i++) {
        if (is_small() ? widths[i] > 2049 : widths[i] > 2049 && is_left_out(i)) continue;
        check_width(widths[i], is_small() && widths[i] > 1009 ? 3 : N, (uint64_t)i);
    }
    check_width(300, 2, 99);
}
