#include "kernels/outliers.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/float16.h"
#include "kernels/weights.h"

/* Where the header keeps what, little endian. */
enum {
    AT_MAGIC = 0,
    AT_HEADER_BYTES = 4,
    AT_KIND = 8,
    AT_ROWS = 12,
    AT_COLS = 16,
    AT_N = 20,
    AT_COUNTS = 24,
    AT_COLUMNS = 32,
    AT_VALUES = 40,
    AT_TOTAL = 48
};

enum { KIND_ENTRIES = 1, KIND_COLUMNS = 2 };

static const char magic[4] = {'O', 'U', 'T', '1'};

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_le(uint8_t *p, int n, uint64_t v) {
    for (int i = 0; i < n; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static bool is_wide(int cols) { return cols > 65536; }

struct layout {
    size_t counts, columns, values, total; /* counts 0: there are none */
};

/* Columns come first: they are what may need four bytes of alignment. */
static struct layout lay_out(int rows, int cols, uint32_t n, bool whole) {
    struct layout l = {.columns = OUTLIERS_HEADER_BYTES};
    l.values = l.columns + (size_t)n * (is_wide(cols) ? 4 : 2);
    size_t end = l.values + (size_t)n * 2 * (whole ? (size_t)rows : 1);
    if (!whole) {
        l.counts = end;
        end += (size_t)rows * 2;
    }
    l.total = (end + OUTLIERS_ALIGN - 1) / OUTLIERS_ALIGN * OUTLIERS_ALIGN;
    return l;
}

size_t outliers_bytes(int rows, int cols, uint32_t n) {
    return lay_out(rows, cols, n, false).total;
}

size_t outliers_whole_bytes(int rows, int cols, uint32_t n) {
    return lay_out(rows, cols, n, true).total;
}

static void write_header(uint8_t *p, const struct layout *l, const struct outliers_view *v) {
    memcpy(p + AT_MAGIC, magic, sizeof magic);
    put_le(p + AT_HEADER_BYTES, 4, OUTLIERS_HEADER_BYTES);
    put_le(p + AT_KIND, 4, v->whole ? KIND_COLUMNS : KIND_ENTRIES);
    put_le(p + AT_ROWS, 4, (uint64_t)v->rows);
    put_le(p + AT_COLS, 4, (uint64_t)v->cols);
    put_le(p + AT_N, 4, v->n);
    put_le(p + AT_COUNTS, 8, l->counts);
    put_le(p + AT_COLUMNS, 8, l->columns);
    put_le(p + AT_VALUES, 8, l->values);
    put_le(p + AT_TOTAL, 8, l->total);
}

static void point(struct outliers_view *v, const void *block, const struct layout *l) {
    const uint8_t *p = block;
    v->counts = l->counts ? (const uint16_t *)(const void *)(p + l->counts) : NULL;
    v->columns = p + l->columns;
    v->values = (const uint16_t *)(const void *)(p + l->values);
    v->total = l->total;
}

static int bad(struct error *err, const char *what) {
    return error_set(err, -EBADMSG, "outliers: %s", what);
}

static bool is_finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

/* Entries first .. first + n - 1 have rising columns in the matrix. */
static int check_columns(const struct outliers_view *v, int row, uint32_t first, uint32_t n,
                         struct error *err) {
    int64_t last = -1;
    for (uint32_t e = first; e < first + n; e++) {
        int64_t column = (int64_t)outliers_column(v, e);
        if (column >= v->cols)
            return error_set(err, -EBADMSG, "outliers: row %d: column %lld of %d", row,
                             (long long)column, v->cols);
        if (column <= last)
            return error_set(err, -EBADMSG, "outliers: row %d: columns do not rise", row);
        last = column;
    }
    return 0;
}

static int check_rows(const struct outliers_view *v, struct error *err) {
    uint64_t sum = 0;
    for (int r = 0; r < v->rows; r++) sum += v->counts[r];
    if (sum != v->n)
        return error_set(err, -EBADMSG, "outliers: rows count %llu entries, the header says %u",
                         (unsigned long long)sum, v->n);
    uint32_t first = 0;
    for (int r = 0; r < v->rows; first += v->counts[r++]) {
        int rc = check_columns(v, r, first, v->counts[r], err);
        if (rc < 0) return rc;
    }
    return 0;
}

static int check_values(const struct outliers_view *v, struct error *err) {
    size_t n = (size_t)v->n * (v->whole ? (size_t)v->rows : 1);
    for (size_t i = 0; i < n; i++)
        if (!is_finite(v->values[i])) return bad(err, "a value is not finite");
    return 0;
}

int outliers_parse(struct outliers_view *ret, const void *bytes, size_t n_bytes,
                   struct error *err) {
    const uint8_t *p = bytes;
    uint8_t header[OUTLIERS_HEADER_BYTES] = {0};
    if (n_bytes < OUTLIERS_HEADER_BYTES) return bad(err, "shorter than a header");
    if ((uintptr_t)bytes % OUTLIERS_ALIGN) return bad(err, "the block is not aligned");
    if (memcmp(p, magic, sizeof magic)) return bad(err, "no magic OUT1");
    uint32_t kind = get_u32(p + AT_KIND);
    if (kind != KIND_ENTRIES && kind != KIND_COLUMNS)
        return error_set(err, -EBADMSG, "outliers: kind %u is not 1 or 2", kind);
    uint32_t rows = get_u32(p + AT_ROWS), cols = get_u32(p + AT_COLS), n = get_u32(p + AT_N);
    if (rows < 1 || rows > BCQ_MAX_DIM || cols < 1 || cols > BCQ_MAX_DIM)
        return error_set(err, -EBADMSG, "outliers: %u rows of %u columns are out of range", rows,
                         cols);
    struct outliers_view v = {
        .rows = (int)rows, .cols = (int)cols, .whole = kind == KIND_COLUMNS, .n = n};
    struct layout l = lay_out(v.rows, v.cols, n, v.whole);
    write_header(header, &l, &v);
    if (memcmp(header, p, sizeof header)) return bad(err, "the header contradicts itself");
    if (l.total != n_bytes) return bad(err, "the block is not as long as its header says");
    point(&v, bytes, &l);
    int rc = v.whole ? check_columns(&v, 0, 0, n, err) : check_rows(&v, err);
    if (rc == 0) rc = check_values(&v, err);
    if (rc == 0) *ret = v;
    return rc;
}

static void format(struct outliers_view *v, void *block) {
    struct layout l = lay_out(v->rows, v->cols, v->n, v->whole);
    write_header(block, &l, v);
    point(v, block, &l);
}

void outliers_format(struct outliers_view *ret, void *block, int rows, int cols, uint32_t n) {
    *ret = (struct outliers_view){.rows = rows, .cols = cols, .n = n};
    format(ret, block);
}

void outliers_format_whole(struct outliers_view *ret, void *block, int rows, int cols, uint32_t n) {
    *ret = (struct outliers_view){.rows = rows, .cols = cols, .whole = true, .n = n};
    format(ret, block);
}

uint32_t outliers_first(const struct outliers_view *v, int row) {
    uint32_t first = 0;
    for (int r = 0; r < row; r++) first += v->counts[r];
    return first;
}

uint32_t outliers_column(const struct outliers_view *v, uint32_t entry) {
    if (is_wide(v->cols)) return ((const uint32_t *)v->columns)[entry];
    return ((const uint16_t *)v->columns)[entry];
}

void outliers_put_column(const struct outliers_view *v, uint32_t entry, uint32_t column) {
    void *columns = (void *)(uintptr_t)v->columns;
    if (is_wide(v->cols))
        ((uint32_t *)columns)[entry] = column;
    else
        ((uint16_t *)columns)[entry] = (uint16_t)column;
}

void outliers_add_row(const struct outliers_view *v, int row, float *out) {
    const uint16_t *values = v->values + (size_t)row * v->n;
    for (uint32_t i = 0; v->whole && i < v->n; i++)
        out[outliers_column(v, i)] += f16_to_f32(values[i]);
    if (v->whole) return;
    uint32_t first = outliers_first(v, row);
    for (uint32_t e = first; e < first + v->counts[row]; e++)
        out[outliers_column(v, e)] += f16_to_f32(v->values[e]);
}
