#include "engine/packed.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pvq.h"
#include "kernels/error.h"

enum {
    HEAD_BITS = 8 + 10 + 4, /* of a stream: center, least norm, width of norms */
    MAX_NORM_BITS = 10
};

static const char magic[4] = {'B', 'C', 'Q', 'P'}, plain[4] = {'B', 'C', 'Q', '1'};

/* -- Streams of bits, low bits first ---------------------------------------------------------- */

struct bits {
    uint8_t *bytes;      /* writing; NULL: only count */
    const uint8_t *from; /* reading */
    size_t at, n;        /* bits */
    bool is_short;       /* something was read past the end */
};

static void put(struct bits *b, uint64_t value, int width) {
    for (int i = 0; i < width; i++, b->at++)
        if (b->bytes) b->bytes[b->at / 8] |= (uint8_t)((value >> i & 1) << b->at % 8);
}

static uint64_t get(struct bits *b, int width) {
    uint64_t value = 0;
    for (int i = 0; i < width; i++, b->at++) {
        if (b->at >= b->n)
            b->is_short = true;
        else
            value |= (uint64_t)(b->from[b->at / 8] >> b->at % 8 & 1) << i;
    }
    return value;
}

static void put_number(struct bits *b, const struct pvq_number *number, int width) {
    for (int i = 0; width > 0; i++, width -= 64) put(b, number->limb[i], width < 64 ? width : 64);
}

static void get_number(struct bits *b, struct pvq_number *number, int width) {
    *number = (struct pvq_number){{0}};
    for (int i = 0; width > 0; i++, width -= 64) number->limb[i] = get(b, width < 64 ? width : 64);
}

/* -- Sections of fields ------------------------------------------------------------------------ */

/* q or p of a block: rows of n fields, cut into pieces of nearly equal width. */
struct fields {
    uint8_t *bytes;
    size_t stride;
    int rows, n, width;
    bool is_signed;
};

static int pieces_of(const struct fields *f) { return (f->n + PVQ_MAX_DIMS - 1) / PVQ_MAX_DIMS; }

static int piece_start(const struct fields *f, int piece) {
    return (int)((int64_t)f->n * piece / pieces_of(f));
}

static int field(const struct fields *f, int row, int i) {
    const uint8_t *fields = f->bytes + (size_t)row * f->stride;
    return f->is_signed ? bcq_get_signed(fields, f->width, i) : (int)bcq_get(fields, f->width, i);
}

static void section_of(struct fields *f, const struct bcq_view *v, bool is_bias) {
    const struct bcq_layout *l = &v->layout;
    *f = (struct fields){.bytes = (uint8_t *)(uintptr_t)(is_bias ? v->p : v->q),
                         .stride = is_bias ? l->p_stride : l->q_stride,
                         .rows = v->spec.rows,
                         .n = l->n_groups,
                         .width = is_bias ? v->spec.bias_bits : v->spec.scale_bits,
                         .is_signed = is_bias};
}

/* What a stream's head says. */
struct head {
    int center, least, norm_bits;
};

static int norm_of(const struct fields *f, int row, int piece, int center) {
    int norm = 0;
    for (int i = piece_start(f, piece); i < piece_start(f, piece + 1); i++)
        norm += abs(field(f, row, i) - center);
    return norm;
}

/* Around this center; false when some norm is beyond the tables. */
static bool head_at(const struct fields *f, int center, struct head *ret) {
    int least = PVQ_MAX_NORM, most = 0;
    for (int row = 0; row < f->rows; row++) {
        for (int piece = 0; piece < pieces_of(f); piece++) {
            int norm = norm_of(f, row, piece, center);
            if (norm > PVQ_MAX_NORM) return false;
            least = norm < least ? norm : least;
            most = norm > most ? norm : most;
        }
    }
    *ret = (struct head){.center = center, .least = least};
    while (most - least >= 1 << ret->norm_bits) ret->norm_bits++;
    return true;
}

static void write_piece(const struct pvq *p, const struct fields *f, const struct head *head,
                        int row, int piece, struct bits *out) {
    int vector[PVQ_MAX_DIMS], first = piece_start(f, piece);
    int n = piece_start(f, piece + 1) - first, norm = norm_of(f, row, piece, head->center);
    put(out, (uint64_t)(norm - head->least), head->norm_bits);
    if (!out->bytes) {
        out->at += (size_t)pvq_bits(p, n, norm);
        return;
    }
    struct pvq_number number;
    for (int i = 0; i < n; i++) vector[i] = field(f, row, first + i) - head->center;
    pvq_index(p, vector, n, norm, &number);
    put_number(out, &number, pvq_bits(p, n, norm));
}

static void write_section(const struct pvq *p, const struct fields *f, const struct head *head,
                          struct bits *out) {
    put(out, (uint64_t)(uint8_t)head->center, 8);
    put(out, (uint64_t)head->least, 10);
    put(out, (uint64_t)head->norm_bits, 4);
    for (int row = 0; row < f->rows; row++)
        for (int piece = 0; piece < pieces_of(f); piece++) write_piece(p, f, head, row, piece, out);
}

/* The center around which a section takes the fewest bits; false when there is none. */
static bool choose_head(const struct pvq *p, const struct fields *f, struct head *best) {
    int low = f->is_signed ? -(1 << (f->width - 1)) : 0, high = low + (1 << f->width) - 1;
    size_t least = SIZE_MAX;
    for (int center = low; center <= high; center++) {
        struct head head;
        struct bits count = {0};
        if (center < -128 || center > 127 || !head_at(f, center, &head)) continue;
        write_section(p, f, &head, &count);
        if (count.at >= least) continue;
        least = count.at;
        *best = head;
    }
    return least < SIZE_MAX;
}

static int put_field(const struct fields *f, int row, int i, int value, struct error *err) {
    int low = f->is_signed ? -(1 << (f->width - 1)) : 0, high = low + (1 << f->width) - 1;
    if (value < low || value > high)
        return error_set(err, -EBADMSG, "packed block: a field of %d bits would be %d", f->width,
                         value);
    bcq_put(f->bytes + (size_t)row * f->stride, f->width, i, (unsigned)value);
    return 0;
}

static int read_piece(const struct pvq *p, const struct fields *f, const struct head *head, int row,
                      int piece, struct bits *in, struct error *err) {
    int vector[PVQ_MAX_DIMS], first = piece_start(f, piece);
    int n = piece_start(f, piece + 1) - first;
    int norm = head->least + (int)get(in, head->norm_bits);
    struct pvq_number number;
    if (norm > PVQ_MAX_NORM)
        return error_set(err, -EBADMSG, "packed block: norm %d is not in 0..%d", norm,
                         PVQ_MAX_NORM);
    get_number(in, &number, pvq_bits(p, n, norm));
    if (in->is_short) return error_set(err, -EBADMSG, "packed block: the stream is cut short");
    int r = pvq_vector(p, &number, n, norm, vector, err);
    if (r < 0) return error_prefix(err, r, "packed block");
    for (int i = 0; r == 0 && i < n; i++)
        r = put_field(f, row, first + i, vector[i] + head->center, err);
    return r;
}

static int read_section(const struct pvq *p, const struct fields *f, struct bits *in,
                        struct error *err) {
    struct head head;
    int r = 0, center = (int)get(in, 8);
    head.center = center < 128 ? center : center - 256;
    head.least = (int)get(in, 10);
    head.norm_bits = (int)get(in, 4);
    if (head.norm_bits > MAX_NORM_BITS)
        return error_set(err, -EBADMSG, "packed block: norms of %d bits are not in 0..%d",
                         head.norm_bits, MAX_NORM_BITS);
    for (int row = 0; r == 0 && row < f->rows; row++)
        for (int piece = 0; r == 0 && piece < pieces_of(f); piece++)
            r = read_piece(p, f, &head, row, piece, in, err);
    return r;
}

/* -- Blocks ------------------------------------------------------------------------------------ */

/* The parts of a plain block that stay as they are: up to q, and from the shapes on. */
static size_t kept_bytes(const struct bcq_layout *l) {
    return (size_t)l->q + (size_t)(l->total - l->shape);
}

static int table_dims(const struct bcq_layout *l) {
    return l->n_groups < PVQ_MAX_DIMS ? l->n_groups : PVQ_MAX_DIMS;
}

bool packed_is(const void *bytes, size_t n_bytes) {
    return n_bytes >= BCQ_HEADER_BYTES && !memcmp(bytes, magic, sizeof magic);
}

static int read_header(struct bcq_view *v, const void *bytes, size_t n_bytes, struct error *err) {
    uint8_t header[BCQ_HEADER_BYTES];
    if (!packed_is(bytes, n_bytes))
        return error_set(err, -EBADMSG, "packed block: does not begin with BCQP");
    if ((uintptr_t)bytes % BCQ_ALIGN)
        return error_set(err, -EBADMSG, "packed block: is not aligned");
    memcpy(header, bytes, sizeof header);
    memcpy(header, plain, sizeof plain);
    int r = bcq_parse_header(&v->spec, &v->layout, header, err);
    if (r < 0) return error_prefix(err, r, "packed block");
    if (v->spec.kind >= BCQ_FREE)
        return error_set(err, -EBADMSG, "packed block: kind %d has no fields to pack",
                         (int)v->spec.kind);
    if (kept_bytes(&v->layout) > n_bytes)
        return error_set(err, -EBADMSG, "packed block: is cut short");
    return 0;
}

/* Points at the sections that lie in the packed block, moved up by what q and p took. */
static void point(struct bcq_view *v, const uint8_t *bytes, uint8_t *fields) {
    const struct bcq_layout *l = &v->layout;
    const uint8_t *tail = bytes + l->q;
    v->planes = (const uint32_t *)(const void *)(bytes + l->planes);
    v->q = fields;
    v->p = fields + (l->p - l->q);
    v->shape = tail;
    if (l->shape_table) v->shape_table = tail + (l->shape_table - l->shape);
    v->row_scale = (const uint16_t *)(const void *)(tail + (l->row_scale - l->shape));
}

static int read_fields(const struct bcq_view *v, struct bits *in, struct error *err) {
    struct pvq *p = NULL;
    int r = pvq_new(&p, table_dims(&v->layout), PVQ_MAX_NORM, err);
    for (int i = 0; r == 0 && i < 2; i++) {
        struct fields f;
        section_of(&f, v, i == 1);
        r = read_section(p, &f, in, err);
    }
    pvq_free(p);
    for (; r == 0 && in->at < in->n; in->at++)
        if (in->from[in->at / 8] >> in->at % 8 & 1)
            r = error_set(err, -EBADMSG, "packed block: bits follow the stream");
    return r;
}

int packed_open(struct packed_view *ret, const void *bytes, size_t n_bytes, struct error *err) {
    struct packed_view v = {0};
    int r = read_header(&v.bcq, bytes, n_bytes, err);
    if (r < 0) return r;
    const struct bcq_layout *l = &v.bcq.layout;
    size_t kept = kept_bytes(l), n = (size_t)(l->shape - l->q);
    /* The fields are at most sixteen times the planes, which are there: a small file cannot ask for
     * much memory. */
    if ((n_bytes - kept) * 8 < 2 * HEAD_BITS)
        return error_set(err, -EBADMSG, "packed block: the stream is cut short");
    v.fields = calloc(n, 1);
    if (!v.fields) return error_set(err, -ENOMEM, "packed block: out of memory");
    point(&v.bcq, bytes, v.fields);
    struct bits in = {.from = (const uint8_t *)bytes + kept, .n = (n_bytes - kept) * 8};
    r = read_fields(&v.bcq, &in, err);
    if (r == 0) r = bcq_check_values(&v.bcq, err);
    if (r < 0)
        packed_close(&v);
    else
        *ret = v;
    return r;
}

void packed_close(struct packed_view *v) {
    free(v->fields);
    v->fields = NULL;
}

static int no_gain(struct error *err) {
    return error_set(err, -ERANGE, "codec pvq: the block would not become smaller");
}

int packed_make(void **ret, size_t *ret_n, const struct bcq_view *view, const void *block,
                struct error *err) {
    const struct bcq_layout *l = &view->layout;
    struct fields f[2];
    struct head head[2];
    struct pvq *p = NULL;
    if (view->spec.kind >= BCQ_FREE)
        return error_set(err, -ENOTSUP, "codec pvq: a free block's scales are no small integers");
    int r = pvq_new(&p, table_dims(l), PVQ_MAX_NORM, err);
    if (r < 0) return r;
    struct bits count = {0};
    for (int i = 0; r == 0 && i < 2; i++) {
        section_of(&f[i], view, i == 1);
        if (choose_head(p, &f[i], &head[i]))
            write_section(p, &f[i], &head[i], &count);
        else
            r = no_gain(err);
    }
    size_t kept = kept_bytes(l), align = BCQ_ALIGN;
    size_t n = (kept + (count.at + 7) / 8 + align - 1) / align * align;
    if (r == 0 && n >= l->total) r = no_gain(err);
    uint8_t *bytes = r == 0 ? aligned_alloc(align, n) : NULL;
    if (r == 0 && !bytes) r = error_set(err, -ENOMEM, "codec pvq: out of memory");
    if (r == 0) {
        memset(bytes, 0, n);
        memcpy(bytes, block, (size_t)l->q);
        memcpy(bytes + l->q, (const uint8_t *)block + l->shape, (size_t)(l->total - l->shape));
        memcpy(bytes, magic, sizeof magic);
        struct bits out = {.bytes = bytes + kept};
        for (int i = 0; i < 2; i++) write_section(p, &f[i], &head[i], &out);
        *ret = bytes;
        *ret_n = n;
    }
    pvq_free(p);
    return r;
}
