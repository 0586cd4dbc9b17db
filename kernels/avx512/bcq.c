#include "kernels/avx512/avx512.h"

#include "kernels/avx512/bcq_compact.h"
#include "kernels/ops.h"

/* Tokens whose tables are used together, while they stay in L2: a block's code then comes from
 * memory once for all of them. */
enum { TOKEN_TILE = 16 };

/* The largest power of two up to a span that divides the group. */
static int piece_of(int group) {
    int low = group & -group;
    return low < AVX512_BCQ_SPAN ? low : AVX512_BCQ_SPAN;
}

static void compact_shape(struct avx512_bcq_shape *s) {
    size_t halves = ((size_t)s->cols + 63) / 64, lines = AVX512_BCQ_UNITS * halves;
    s->streams = s->bits;
    s->code = 128 * lines;
    s->rest = avx512_compact_span_at(s->bits, 0) + 64 * ((size_t)s->spans + lines);
}

static void free_shape(struct avx512_bcq_shape *s) {
    size_t bits = (size_t)s->bits, pieces;
    s->row = s->group >= s->cols;
    s->piece = s->row ? AVX512_BCQ_SPAN : piece_of(s->group);
    pieces = ((size_t)s->cols + (size_t)s->piece - 1) / (size_t)s->piece;
    s->params = (bits + 1) * (s->wide ? 64 : 32);
    s->streams = (int)(s->piece == 16 ? (bits + 1) / 2 : bits);
    s->code = AVX512_BCQ_UNITS * 64 * (s->piece == 16 ? pieces : (size_t)s->words);
    s->rest = AVX512_BCQ_UNITS * s->params * (s->row ? 1 : pieces);
}

static void odd_shape(struct avx512_bcq_shape *s) {
    size_t entries = 0;
    for (int run = 0; run < s->runs; run++) {
        int first, last;
        avx512_bcq_groups_of(s, run, &first, &last);
        entries += (size_t)(last - first + 1);
    }
    s->params = ((size_t)s->bits + 1) * 64;
    s->rest = AVX512_BCQ_UNITS * 2 * s->params * entries;
}

enum avx512_bcq_form avx512_bcq_form(const struct bcq_spec *w) {
    if (w->group % 16 && w->group < w->cols) return AVX512_BCQ_ODD;
    return w->kind == BCQ_COMPACT && w->scale_bits <= 4 && w->bias_bits <= 5 ? AVX512_BCQ_COMPACT
                                                                             : AVX512_BCQ_FREE;
}

/* Look-ups of bytes take half the time of others, and a token of the tile the same; those of two planes
 * are faster than it for any number of tokens. */
bool avx512_bcq_takes_tile(const struct bcq_spec *w, int act_bits, int n) {
    static const int from[BCQ_MAX_BITS] = {20, 5, 4, 4};
    if (avx512_bcq_form(w) != AVX512_BCQ_COMPACT) return false;
    if (avx512_bcq_parts(act_bits) == 1) return w->bits > 2 && n >= 13;
    return n >= from[w->bits - 1];
}

static size_t packed_bytes(const struct avx512_bcq_shape *s) {
    return avx512_bcq_rest_at(s, s->blocks);
}

void avx512_bcq_shape(struct avx512_bcq_shape *ret, const struct bcq_spec *w) {
    struct avx512_bcq_shape s = {.cols = w->cols,
                                 .group = w->group,
                                 .bits = w->bits,
                                 .spans = (w->cols + AVX512_BCQ_SPAN - 1) / AVX512_BCQ_SPAN,
                                 .runs = (w->cols + 15) / 16,
                                 .words = (w->cols + 31) / 32,
                                 .blocks = (w->rows + AVX512_BCQ_ROWS - 1) / AVX512_BCQ_ROWS,
                                 .wide = w->kind != BCQ_FREE,
                                 .form = avx512_bcq_form(w)};
    if (s.form == AVX512_BCQ_ODD) odd_shape(&s);
    if (s.form == AVX512_BCQ_COMPACT) compact_shape(&s);
    if (s.form == AVX512_BCQ_FREE) free_shape(&s);
    *ret = s;
}

size_t avx512_bcq_pack_bytes(const struct bcq_spec *w) {
    struct avx512_bcq_shape s;
    avx512_bcq_shape(&s, w);
    return packed_bytes(&s);
}

static avx512_bcq_panel_function *kernel(const struct avx512_bcq_shape *s, int n, int parts) {
    if (s->form == AVX512_BCQ_COMPACT) return avx512_bcq_compact(s, n, parts);
    return s->form == AVX512_BCQ_FREE ? avx512_bcq_free(s, n, parts) : avx512_bcq_odd(n, parts);
}

void avx512_bcq_mul_tables(float *y, size_t ldy, const void *packed, const struct bcq_spec *w,
                           const void *act, int act_bits, int n, int b0, int b1) {
    const int parts = avx512_bcq_parts(act_bits);
    struct avx512_bcq_shape s;
    avx512_bcq_shape(&s, w);
    const struct avx512_bcq_token *tokens = act;
    const void *spans = (const uint8_t *)act + avx512_bcq_token_bytes(n);
    const struct avx512_bcq_span *first = spans;
    for (int t0 = 0; t0 < n; t0 += TOKEN_TILE)
        for (int b = b0; b < b1; b++)
            for (int t = t0; t < avx512_min(t0 + TOKEN_TILE, n); t += AVX512_BCQ_COLUMNS) {
                int row = b * AVX512_BCQ_ROWS;
                const struct avx512_bcq_panel panel = {
                    .shape = &s,
                    .block = avx512_bcq_block(&s, packed, b),
                    .spans = avx512_bcq_at(first, parts, (size_t)t * (size_t)s.spans),
                    .tokens = tokens + t,
                    .y = y + (size_t)t * ldy + row,
                    .ldy = ldy,
                    .n_rows = avx512_min(w->rows - row, AVX512_BCQ_ROWS)};
                kernel(&s, avx512_min(n - t, AVX512_BCQ_COLUMNS), parts)(&panel);
            }
}

void avx512_bcq_mul_many(avx512_bcq_tile_function *tile, float *y, size_t ldy, const void *packed,
                         const struct bcq_spec *w, const void *act, int act_bits, int n, int b0,
                         int b1) {
    struct avx512_bcq_shape s;
    avx512_bcq_shape(&s, w);
    tile(&(struct avx512_bcq_tile){.shape = &s,
                                   .packed = packed,
                                   .act = act,
                                   .act_bits = act_bits,
                                   .n = n,
                                   .y = y,
                                   .ldy = ldy,
                                   .rows = w->rows,
                                   .b0 = b0,
                                   .b1 = b1,
                                   .u1 = AVX512_BCQ_UNITS});
}

static enum avx512_bcq_inputs inputs_of(const struct bcq_spec *w, int act_bits, int n) {
    return avx512_bcq_takes_tile(w, act_bits, n) ? AVX512_BCQ_PAIRS : AVX512_BCQ_TABLES;
}

static int act_form(const struct bcq_spec *w, int act_bits, int n) {
    return (int)inputs_of(w, act_bits, n);
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    avx512_bcq_act_pack(inputs_of(w, act_bits, n), act, act_bits, w, x, ldx, n, part, n_parts);
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    if (avx512_bcq_takes_tile(w, act_bits, n))
        avx512_bcq_mul_many(avx512_bcq_mul_tile, y, ldy, packed, w, act, act_bits, n, b0, b1);
    else
        avx512_bcq_mul_tables(y, ldy, packed, w, act, act_bits, n, b0, b1);
}

void avx512_bcq_init(struct bcq_ops *ops) {
    ops->row_block = AVX512_BCQ_ROWS;
    ops->pack_bytes = avx512_bcq_pack_bytes;
    ops->pack = avx512_bcq_pack;
    ops->act_bytes = avx512_bcq_act_bytes;
    ops->act_form = act_form;
    ops->act_pack = act_pack;
    ops->mul = mul;
}
