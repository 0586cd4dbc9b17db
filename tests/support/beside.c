#include "tests/support/beside.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/float16.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

static void *zeros(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) abort();
    return memset(p, 0, bytes);
}

static void fill_values(const struct outliers_view *v, size_t n, uint64_t *seed) {
    uint16_t *values = (uint16_t *)(uintptr_t)v->values;
    for (size_t i = 0; i < n; i++) values[i] = f32_to_f16(matrix_normal(seed));
}

void *beside_outliers(struct outliers_view *ret, int rows, int cols, uint64_t seed) {
    uint16_t *per_row = zeros((size_t)rows * sizeof *per_row);
    uint32_t *columns = zeros((size_t)rows * (size_t)cols * sizeof *columns), n = 0;
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols && r % 7 != 3; c++) {
            if (random_next(&seed) % (r ? 40 : 3)) continue;
            columns[n++] = (uint32_t)c;
            per_row[r]++;
        }
    }
    void *block = zeros(outliers_bytes(rows, cols, n));
    outliers_format(ret, block, rows, cols, n);
    memcpy((uint16_t *)(uintptr_t)ret->counts, per_row, (size_t)rows * sizeof *per_row);
    for (uint32_t e = 0; e < n; e++) outliers_put_column(ret, e, columns[e]);
    fill_values(ret, n, &seed);
    free(per_row);
    free(columns);
    return block;
}

void *beside_columns(struct outliers_view *ret, int rows, int cols, uint64_t seed) {
    uint32_t n = ((uint32_t)cols + 2) / 3;
    void *block = zeros(outliers_whole_bytes(rows, cols, n));
    outliers_format_whole(ret, block, rows, cols, n);
    for (uint32_t e = 0; e < n; e++) outliers_put_column(ret, e, 3 * e);
    fill_values(ret, (size_t)rows * n, &seed);
    return block;
}

static void fill_signs(const struct rotation *r, uint64_t *seed) {
    uint32_t *signs = (uint32_t *)(uintptr_t)r->signs;
    for (int i = 0; i < r->n; i++)
        if (random_next(seed) & 1) signs[i / 32] |= 1u << i % 32;
}

void *beside_rotation(struct rotation_view *ret, int rows, int cols, bool both, uint64_t seed) {
    struct rotation in = {0}, out = {0};
    if (rotation_choose(&in, cols, NULL) || (both && rotation_choose(&out, rows, NULL))) abort();
    void *block = zeros(rotation_bytes(rows, cols, both));
    rotation_format(ret, block, rows, cols, &in, both ? &out : NULL);
    fill_signs(&ret->in, &seed);
    fill_signs(&ret->out, &seed);
    return block;
}
