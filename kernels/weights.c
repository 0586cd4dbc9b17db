#include "kernels/weights.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/float16.h"
#include "kernels/outliers.h"
#include "kernels/rotation.h"

/* Where the header keeps what; the values are little endian, like every host we build for. */
enum {
    AT_MAGIC = 0,
    AT_HEADER_BYTES = 4,
    AT_KIND = 8,
    AT_BITS = 12,
    AT_ROWS = 16,
    AT_COLS = 20,
    AT_GROUP = 24,
    AT_N_GROUPS = 28,
    AT_SCALE_BITS = 32,
    AT_BIAS_BITS = 36,
    AT_SHAPE_BITS = 40,
    AT_N_SHAPES = 44,
    AT_PLANES = 48,
    AT_Q = 56,
    AT_P = 64,
    AT_SHAPE = 72,
    AT_SHAPE_TABLE = 80,
    AT_ROW_SCALE = 88,
    AT_ALPHA = 96,
    AT_BETA = 104,
    AT_TOTAL = 112,
    AT_SIDE = 120 /* reserved for a side part; 0 */
};

static const char magic[4] = {'B', 'C', 'Q', '1'};

size_t kv_plane_bytes(enum dtype type, int head_dim) {
    size_t scales = type == DTYPE_I8 ? KV_BLOCK_TOKENS * sizeof(float) : 0;
    return KV_BLOCK_TOKENS * (size_t)head_dim * dtype_size(type) + scales;
}

static uint64_t get_le(const uint8_t *p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static void put_le(uint8_t *p, int n, uint64_t v) {
    for (int i = 0; i < n; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static bool in_range(int v, int low, int high) { return v >= low && v <= high; }

static int refuse(struct error *err, const char *field, int v, int low, int high) {
    return error_set(err, -EINVAL, "binary-coded matrix: %s %d is not in %d..%d", field, v, low,
                     high);
}

static bool is_compact(const struct bcq_spec *s) {
    return s->kind == BCQ_COMPACT || s->kind == BCQ_COMPACT_GROUP;
}

int weight_check_beside(const struct weight_view *v, struct error *err) {
    const struct outliers_view *o = v->outliers;
    const struct rotation_view *r = v->rotation;
    if (o && (!v->is_bcq || o->rows != v->rows || o->cols != v->cols))
        return error_set(err, -EINVAL, "outliers of another matrix");
    if (r && (!v->is_bcq || r->rows != v->rows || r->cols != v->cols))
        return error_set(err, -EINVAL, "rotations of another matrix");
    /* Entries would count in the natural basis, the codes in the rotated one. */
    if (o && r) return error_set(err, -EINVAL, "outliers and rotations of one matrix");
    return 0;
}

int bcq_check(const struct bcq_spec *s, struct error *err) {
    if (!in_range((int)s->kind, BCQ_COMPACT, BCQ_WHOLE))
        return refuse(err, "kind", (int)s->kind, BCQ_COMPACT, BCQ_WHOLE);
    bool compact = is_compact(s), shapes = s->kind == BCQ_COMPACT_GROUP;
    bool whole = s->kind == BCQ_WHOLE;
    const struct {
        const char *name;
        int value, low, high;
    } fields[] = {
        {"rows", s->rows, 1, BCQ_MAX_DIM},
        {"cols", s->cols, 1, BCQ_MAX_DIM},
        {"bits", s->bits, whole ? 2 : 1, whole ? BCQ_MAX_PLANES : BCQ_MAX_BITS},
        {"group", s->group, whole ? BCQ_WHOLE_GROUP : 1, whole ? BCQ_WHOLE_GROUP : s->cols},
        {"scale_bits", s->scale_bits, compact, compact ? 8 : 0},
        {"bias_bits", s->bias_bits, compact ? 2 : 0, compact ? 8 : 0},
        {"n_shapes", s->n_shapes, shapes, shapes ? 256 : 0},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!in_range(fields[i].value, fields[i].low, fields[i].high))
            return refuse(err, fields[i].name, fields[i].value, fields[i].low, fields[i].high);
    return 0;
}

static int index_bits(int n) {
    int bits = 1;
    while (1 << bits < n) bits++;
    return bits;
}

/* Puts a section at the running end, which stays a multiple of BCQ_ALIGN. With rows, cols up to
 * 2^20 nothing here comes near 2^64. */
static uint64_t place(uint64_t *end, uint64_t bytes) {
    if (!bytes) return 0;
    uint64_t at = *end;
    *end = (at + bytes + BCQ_ALIGN - 1) / BCQ_ALIGN * BCQ_ALIGN;
    return at;
}

void bcq_layout(struct bcq_layout *ret, const struct bcq_spec *s) {
    bool compact = is_compact(s), shapes = s->kind == BCQ_COMPACT_GROUP;
    uint64_t rows = (uint64_t)s->rows, bits = (uint64_t)s->bits, end = BCQ_HEADER_BYTES;
    struct bcq_layout l = {0};
    l.n_groups = (s->cols + s->group - 1) / s->group;
    l.plane_words = (s->cols + 31) / 32;
    l.shape_bits = shapes ? index_bits(s->n_shapes) : 0;
    uint64_t groups = (uint64_t)l.n_groups;
    l.q_stride = (size_t)((groups * (uint64_t)s->scale_bits + 7) / 8);
    l.p_stride = (size_t)((groups * (uint64_t)s->bias_bits + 7) / 8);
    l.idx_stride = (size_t)((groups * (uint64_t)l.shape_bits + 7) / 8);
    l.planes = place(&end, rows * bits * (uint64_t)l.plane_words * 4);
    l.q = place(&end, rows * l.q_stride);
    l.p = place(&end, rows * l.p_stride);
    if (compact) l.shape = place(&end, rows * (shapes ? l.idx_stride : bits));
    l.shape_table = place(&end, (uint64_t)s->n_shapes * bits);
    if (compact) l.row_scale = place(&end, rows * 4);
    if (s->kind == BCQ_FREE) l.alpha = place(&end, rows * groups * bits * 2);
    if (s->kind == BCQ_FREE) l.beta = place(&end, rows * groups * 2);
    if (s->kind == BCQ_WHOLE) l.alpha = place(&end, rows * groups * 2);
    l.total = end;
    *ret = l;
}

static const void *section(const void *block, uint64_t offset) {
    return offset ? (const uint8_t *)block + offset : NULL;
}

static void point(struct bcq_view *v, const void *block) {
    const struct bcq_layout *l = &v->layout;
    v->planes = section(block, l->planes);
    v->q = section(block, l->q);
    v->p = section(block, l->p);
    v->shape = section(block, l->shape);
    v->shape_table = section(block, l->shape_table);
    v->row_scale = section(block, l->row_scale);
    v->alpha = section(block, l->alpha);
    v->beta = section(block, l->beta);
}

/* The header that a spec has. Reading is comparing with it, so the two cannot disagree. */
static void write_header(uint8_t header[BCQ_HEADER_BYTES], const struct bcq_spec *s,
                         const struct bcq_layout *l) {
    const struct {
        int at;
        int64_t value;
    } words[] = {
        {AT_HEADER_BYTES, BCQ_HEADER_BYTES},
        {AT_KIND, (int64_t)s->kind},
        {AT_BITS, s->bits},
        {AT_ROWS, s->rows},
        {AT_COLS, s->cols},
        {AT_GROUP, s->group},
        {AT_N_GROUPS, l->n_groups},
        {AT_SCALE_BITS, s->scale_bits},
        {AT_BIAS_BITS, s->bias_bits},
        {AT_SHAPE_BITS, l->shape_bits},
        {AT_N_SHAPES, s->n_shapes},
    };
    const struct {
        int at;
        uint64_t value;
    } offsets[] = {
        {AT_PLANES, l->planes},
        {AT_Q, l->q},
        {AT_P, l->p},
        {AT_SHAPE, l->shape},
        {AT_SHAPE_TABLE, l->shape_table},
        {AT_ROW_SCALE, l->row_scale},
        {AT_ALPHA, l->alpha},
        {AT_BETA, l->beta},
        {AT_TOTAL, l->total},
        {AT_SIDE, 0},
    };
    memcpy(header + AT_MAGIC, magic, sizeof magic);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        put_le(header + words[i].at, 4, (uint64_t)words[i].value);
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++)
        put_le(header + offsets[i].at, 8, offsets[i].value);
}

static int bad(struct error *err, const char *what) {
    return error_set(err, -EBADMSG, "binary-coded matrix: %s", what);
}

/* A value that no field may have becomes -1, which bcq_check() refuses. */
static int small(const uint8_t *p) {
    uint64_t v = get_le(p, 4);
    return v > INT32_MAX ? -1 : (int)v;
}

static int read_spec(struct bcq_spec *ret, const uint8_t *header, struct error *err) {
    if (memcmp(header, magic, sizeof magic)) return bad(err, "no block starts here");
    int kind = small(header + AT_KIND);
    if (!in_range(kind, BCQ_COMPACT, BCQ_WHOLE)) return bad(err, "unknown kind");
    *ret = (struct bcq_spec){
        .kind = (enum bcq_kind)kind,
        .rows = small(header + AT_ROWS),
        .cols = small(header + AT_COLS),
        .bits = small(header + AT_BITS),
        .group = small(header + AT_GROUP),
        .scale_bits = small(header + AT_SCALE_BITS),
        .bias_bits = small(header + AT_BIAS_BITS),
        .n_shapes = small(header + AT_N_SHAPES),
    };
    return bcq_check(ret, err) ? -EBADMSG : 0;
}

static bool shapes_fit(const uint8_t *d, int n, int bits) {
    for (int r = 0; r < n; r++) {
        int sum = 0;
        for (int i = 0; i < bits; i++) {
            if (!in_range(d[r * bits + i], 1, BCQ_MAX_SHAPE)) return false;
            sum += d[r * bits + i];
        }
        if (sum > BCQ_MAX_SHAPE_SUM) return false;
    }
    return true;
}

static bool indices_fit(const struct bcq_view *w) {
    if (1 << w->layout.shape_bits == w->spec.n_shapes) return true;
    for (int r = 0; r < w->spec.rows; r++) {
        const uint8_t *row = w->shape + (size_t)r * w->layout.idx_stride;
        for (int g = 0; g < w->layout.n_groups; g++)
            if ((int)bcq_get(row, w->layout.shape_bits, g) >= w->spec.n_shapes) return false;
    }
    return true;
}

static bool all_finite(const uint16_t *f16, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((f16[i] & 0x7c00u) == 0x7c00u) return false;
    return true;
}

int bcq_check_values(const struct bcq_view *w, struct error *err) {
    const struct bcq_spec *s = &w->spec;
    size_t rows = (size_t)s->rows, groups = (size_t)w->layout.n_groups;
    if (s->kind == BCQ_FREE) {
        if (!all_finite(w->alpha, rows * groups * (size_t)s->bits))
            return bad(err, "an alpha is not finite");
        if (!all_finite(w->beta, rows * groups)) return bad(err, "a beta is not finite");
        return 0;
    }
    if (s->kind == BCQ_WHOLE)
        return all_finite(w->alpha, rows * groups) ? 0 : bad(err, "a scale is not finite");
    if (!all_finite(w->row_scale, 2 * rows)) return bad(err, "a row scale is not finite");
    if (s->kind == BCQ_COMPACT)
        return shapes_fit(w->shape, s->rows, s->bits) ? 0 : bad(err, "a shape is out of range");
    if (!shapes_fit(w->shape_table, s->n_shapes, s->bits))
        return bad(err, "a shape in the table is out of range");
    return indices_fit(w) ? 0 : bad(err, "a shape index is past the table");
}

int bcq_parse_header(struct bcq_spec *spec, struct bcq_layout *layout, const void *bytes,
                     struct error *err) {
    uint8_t header[BCQ_HEADER_BYTES] = {0};
    int rc = read_spec(spec, bytes, err);
    if (rc) return rc;
    bcq_layout(layout, spec);
    write_header(header, spec, layout);
    return memcmp(header, bytes, sizeof header) ? bad(err, "the header contradicts itself") : 0;
}

int bcq_parse(struct bcq_view *ret, const void *bytes, size_t n_bytes, struct error *err) {
    struct bcq_view v = {0};
    if (n_bytes < BCQ_HEADER_BYTES) return bad(err, "shorter than a header");
    if ((uintptr_t)bytes % BCQ_ALIGN) return bad(err, "the block is not aligned");
    int rc = bcq_parse_header(&v.spec, &v.layout, bytes, err);
    if (rc) return rc;
    if (v.layout.total > n_bytes) return bad(err, "the block is cut short");
    point(&v, bytes);
    rc = bcq_check_values(&v, err);
    if (!rc) *ret = v;
    return rc;
}

void bcq_format(struct bcq_view *ret, void *block, const struct bcq_spec *spec) {
    *ret = (struct bcq_view){.spec = *spec};
    bcq_layout(&ret->layout, spec);
    write_header(block, spec, &ret->layout);
    point(ret, block);
}

unsigned bcq_get(const uint8_t *fields, int width, int i) {
    size_t bit = (size_t)i * (size_t)width;
    unsigned shift = bit % 8, v = fields[bit / 8];
    if (shift + (unsigned)width > 8) v |= (unsigned)fields[bit / 8 + 1] << 8;
    return v >> shift & ((1u << width) - 1);
}

int bcq_get_signed(const uint8_t *fields, int width, int i) {
    int v = (int)bcq_get(fields, width, i), half = 1 << (width - 1);
    return (v ^ half) - half;
}

void bcq_put(uint8_t *fields, int width, int i, unsigned value) {
    size_t bit = (size_t)i * (size_t)width;
    unsigned shift = bit % 8, mask = ((1u << width) - 1) << shift;
    unsigned bits = value << shift & mask;
    uint8_t *p = fields + bit / 8;
    p[0] = (uint8_t)((p[0] & ~mask) | bits);
    if (shift + (unsigned)width > 8) p[1] = (uint8_t)((p[1] & ~(mask >> 8)) | bits >> 8);
}

void bcq_group_codes(const struct bcq_view *w, int row, int group, int d[BCQ_MAX_BITS], int *q,
                     int *p) {
    const struct bcq_spec *s = &w->spec;
    const uint8_t *shape;
    if (s->kind == BCQ_COMPACT) {
        shape = w->shape + (size_t)row * (size_t)s->bits;
    } else {
        const uint8_t *indices = w->shape + (size_t)row * w->layout.idx_stride;
        shape = w->shape_table + bcq_get(indices, w->layout.shape_bits, group) * (size_t)s->bits;
    }
    for (int i = 0; i < s->bits; i++) d[i] = shape[i];
    *q = (int)bcq_get(w->q + (size_t)row * w->layout.q_stride, s->scale_bits, group);
    *p = bcq_get_signed(w->p + (size_t)row * w->layout.p_stride, s->bias_bits, group);
}

void bcq_group_params(const struct bcq_view *w, int row, int group, float alpha[BCQ_MAX_BITS],
                      float *beta) {
    int bits = w->spec.bits;
    if (w->spec.kind == BCQ_FREE) {
        size_t at = (size_t)row * (size_t)w->layout.n_groups + (size_t)group;
        for (int i = 0; i < bits; i++)
            alpha[i] = f16_to_f32(w->alpha[at * (size_t)bits + (size_t)i]);
        *beta = f16_to_f32(w->beta[at]);
        return;
    }
    int d[BCQ_MAX_BITS], q, p;
    bcq_group_codes(w, row, group, d, &q, &p);
    /* 11 bits of scale times 8 of q times 5 of d: exact in fp32. */
    float s0 = f16_to_f32(w->row_scale[2 * (size_t)row]);
    for (int i = 0; i < bits; i++) alpha[i] = s0 * (float)(q * d[i]) * 0.5f;
    *beta = f16_to_f32(w->row_scale[2 * (size_t)row + 1]) * (float)p;
}

/* The 2^bits values that a weight of a group can have; bit i of the index is b_i = +1. */
static void group_levels(float *level, const struct bcq_view *w, int row, int group) {
    float alpha[BCQ_MAX_BITS], beta;
    bcq_group_params(w, row, group, alpha, &beta);
    for (int code = 0; code < 1 << w->spec.bits; code++) {
        double v = beta;
        for (int i = 0; i < w->spec.bits; i++) v += code >> i & 1 ? alpha[i] : -alpha[i];
        level[code] = (float)v;
    }
}

/* Eight bits at a time: the product puts bit i of a byte at the bottom of byte i. */
static uint64_t spread(unsigned bits) {
    uint64_t low = (bits & 0x7fu) * 0x0002040810204081u & 0x0101010101010101u;
    return low | (uint64_t)(bits >> 7) << 56;
}

void bcq_whole_codes(const struct bcq_view *w, int row, int group, uint8_t *codes) {
    size_t words = (size_t)w->layout.plane_words, bits = (size_t)w->spec.bits;
    const uint32_t *planes = w->planes + (size_t)row * bits * words + (size_t)group;
    for (int k = 0; k < BCQ_WHOLE_GROUP; k += 8) {
        uint64_t eight = 0;
        for (size_t i = 0; i < bits; i++) eight |= spread(planes[i * words] >> k & 0xff) << i;
        memcpy(codes + k, &eight, sizeof eight);
    }
}

float bcq_whole_scale(const struct bcq_view *w, int row, int group) {
    return f16_to_f32(w->alpha[(size_t)row * (size_t)w->layout.n_groups + (size_t)group]);
}

void bcq_whole_expand(const struct bcq_view *w, int row, int first, int n, float *out) {
    int zero = 1 << (w->spec.bits - 1);
    for (int k = 0; k < n; k += BCQ_WHOLE_GROUP, out += BCQ_WHOLE_GROUP) {
        uint8_t codes[BCQ_WHOLE_GROUP];
        float scale = bcq_whole_scale(w, row, (first + k) / BCQ_WHOLE_GROUP);
        bcq_whole_codes(w, row, (first + k) / BCQ_WHOLE_GROUP, codes);
        for (int i = 0; i < BCQ_WHOLE_GROUP && k + i < n; i++)
            out[i] = scale * (float)((int)codes[i] - zero);
    }
}

void bcq_expand_row(const struct bcq_view *w, int row, float *out) {
    const struct bcq_spec *s = &w->spec;
    if (s->kind == BCQ_WHOLE) {
        bcq_whole_expand(w, row, 0, s->cols, out);
        return;
    }
    size_t words = (size_t)w->layout.plane_words;
    const uint32_t *planes = w->planes + (size_t)row * (size_t)s->bits * words;
    for (int g = 0; g < w->layout.n_groups; g++) {
        float level[1 << BCQ_MAX_BITS];
        group_levels(level, w, row, g);
        int end = (g + 1) * s->group < s->cols ? (g + 1) * s->group : s->cols;
        for (int k = g * s->group; k < end; k++) {
            unsigned code = 0;
            for (int i = 0; i < s->bits; i++)
                code |= (planes[(size_t)i * words + (size_t)k / 32] >> k % 32 & 1u) << i;
            out[k] = level[code];
        }
    }
}

double bcq_bits_per_weight(const struct bcq_spec *spec) {
    struct bcq_layout l;
    bcq_layout(&l, spec);
    return 8.0 * (double)l.total / ((double)spec->rows * (double)spec->cols);
}
