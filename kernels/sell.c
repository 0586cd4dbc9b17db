#include "kernels/sell.h"

static uint32_t longest(const struct outliers_view *v, int block) {
    uint32_t most = v->whole ? v->n : 0;
    if (v->whole) return most;
    for (int r = block * SELL_ROWS; r < (block + 1) * SELL_ROWS && r < v->rows; r++)
        if (v->counts[r] > most) most = v->counts[r];
    return most;
}

static size_t round_up(size_t n) { return (n + 63) / 64 * 64; }

static size_t columns_at(int rows) {
    return round_up(sizeof(struct sell) + ((size_t)sell_blocks(rows) + 1) * sizeof(uint32_t));
}

static int is_wide(const struct outliers_view *v) { return v->cols > 65536; }

size_t sell_bytes(const struct outliers_view *v) {
    size_t steps = 0;
    for (int b = 0; b < sell_blocks(v->rows); b++) steps += longest(v, b);
    if (v->whole) return columns_at(v->rows) + (size_t)v->n * 4 + steps * SELL_ROWS * 2;
    return columns_at(v->rows) + steps * SELL_ROWS * (is_wide(v) ? 6 : 4);
}

static void pack_entry(struct sell *s, const struct outliers_view *v, size_t at, uint32_t entry) {
    void *columns = (void *)(uintptr_t)sell_columns(s);
    if (s->is_wide)
        ((uint32_t *)columns)[at] = outliers_column(v, entry);
    else
        ((uint16_t *)columns)[at] = (uint16_t)outliers_column(v, entry);
    ((uint16_t *)(uintptr_t)sell_values(s))[at] = v->values[entry];
}

static void pack_whole(struct sell *s, const struct outliers_view *v) {
    uint32_t *columns = (uint32_t *)(uintptr_t)sell_columns(s);
    s->values = s->columns + (size_t)v->n * 4;
    uint16_t *values = (uint16_t *)(uintptr_t)sell_values(s);
    for (uint32_t i = 0; i < v->n; i++) columns[i] = outliers_column(v, i);
    for (int r = 0; r < v->rows; r++)
        for (uint32_t i = 0; i < v->n; i++) {
            size_t step = (size_t)s->starts[r / SELL_ROWS] + i;
            values[step * SELL_ROWS + (size_t)(r % SELL_ROWS)] = v->values[(size_t)r * v->n + i];
        }
}

void sell_pack(void *dst, const struct outliers_view *v) {
    struct sell *s = dst;
    uint32_t steps = 0, entry = 0;
    s->rows = v->rows;
    s->is_wide = is_wide(v);
    for (int b = 0; b < sell_blocks(v->rows); b++) {
        s->starts[b] = steps;
        steps += longest(v, b);
    }
    s->starts[sell_blocks(v->rows)] = steps;
    s->columns = columns_at(v->rows);
    s->whole = v->whole;
    if (v->whole) {
        pack_whole(s, v);
        return;
    }
    s->values = s->columns + (size_t)steps * SELL_ROWS * (s->is_wide ? 4 : 2);
    for (int r = 0; r < v->rows; r++) {
        size_t first = (size_t)s->starts[r / SELL_ROWS] * SELL_ROWS + (size_t)(r % SELL_ROWS);
        for (uint32_t i = 0; i < v->counts[r]; i++)
            pack_entry(s, v, first + (size_t)i * SELL_ROWS, entry++);
    }
}
