/* weights.h - describes weight matrices in the portable form that checkpoints hold.
 *
 * Owns      nothing; a view points into bytes that somebody else maps or allocates.
 * Borrows   those bytes until the view is dropped.
 * Thread    any.
 * Fails     bcq_parse() and bcq_check() with -EBADMSG / -EINVAL naming the field; the rest never.
 * Cost      parse O(1) in the number of weights; a row's expansion O(cols * bits).
 *
 * A binary-coded (BCQ) matrix is W[r][k] = beta + sum_i alpha_i * b_i[r][k], b_i in {-1,+1},
 * with alpha and beta per group of consecutive inputs of a row. The byte layout of a BCQ block
 * is written down in engine/CHECKPOINT.md; a view that came from bcq_parse() is safe to read
 * everywhere its shapes say. Back ends repack views into layouts of their own. */
#ifndef KERNELS_WEIGHTS_H
#define KERNELS_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

struct error;
struct outliers_view;
struct rotation_view;

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_I8 /* keys and values alone: whole numbers with a scale for each head and position */
};

enum { KV_BLOCK_TOKENS = 16 /* positions in a block of keys and values */ };

/* Bytes of one element. Inline: inner loops ask with a constant, and a call there would have every
 * vector saved around it. */
static inline size_t dtype_size(enum dtype type) {
    return type == DTYPE_F32 ? 4 : type == DTYPE_I8 ? 1 : 2;
}

/* Bytes of the keys or the values of one head in a block: (KV_BLOCK_TOKENS, head_dim) elements, after
 * those of DTYPE_I8 their scales, (KV_BLOCK_TOKENS) fp32. */
size_t kv_plane_bytes(enum dtype type, int head_dim);

enum {
    BCQ_MAX_BITS = 4,       /* planes of the coded kinds; */
    BCQ_MAX_PLANES = 8,     /* of whole numbers */
    BCQ_WHOLE_GROUP = 32,   /* the only group of whole numbers */
    BCQ_MAX_DIM = 1 << 20,  /* rows or cols */
    BCQ_MAX_SHAPE = 31,     /* largest d_i */
    BCQ_MAX_SHAPE_SUM = 63, /* sum of d_i: a group of 16 then sums in int16 (cpu-level kernels) */
    BCQ_HEADER_BYTES = 128,
    BCQ_ALIGN = 64 /* of the block and of every section in it */
};

/* How the parameters of a group are stored (anchors: "kind R", "kind H", LUT-GEMM form). Whole
 * numbers are for the output matrix: alpha_i = s 2^(i-2), beta = -s/2, so that a weight is
 * s (c - 2^(m-1)) where c has the planes as its bits. They alone may have more than BCQ_MAX_BITS
 * planes. */
enum bcq_kind {
    BCQ_COMPACT = 1,       /* R: alpha_i = s0*q*d_i/2, beta = s1*p; d per row; q, p per group */
    BCQ_COMPACT_GROUP = 2, /* H: the same with d chosen per group from a table of shapes */
    BCQ_FREE = 3,          /* fp16 alpha_1..alpha_m and beta per group */
    BCQ_WHOLE = 4          /* fp16 s per group */
};

/* What fixes the size and place of everything in a block. */
struct bcq_spec {
    enum bcq_kind kind;
    int rows, cols;
    int bits;       /* m, number of planes: 1..BCQ_MAX_BITS, BCQ_WHOLE: 2..BCQ_MAX_PLANES */
    int group;      /* inputs per group, 1..cols; the last group may be shorter. BCQ_WHOLE:
                       BCQ_WHOLE_GROUP, whatever cols */
    int scale_bits; /* a, 1..8: width of q; compact kinds only, else 0 */
    int bias_bits;  /* b, 2..8: width of p (two's complement); compact kinds only, else 0 */
    int n_shapes;   /* rows of shape_table, 1..256; BCQ_COMPACT_GROUP only, else 0 */
};

/* Byte offsets of the sections in a block; 0 where the kind has no such section. */
struct bcq_layout {
    uint64_t planes, q, p, shape, shape_table, row_scale, alpha, beta, total;
    int n_groups;      /* ceil(cols / group) */
    int plane_words;   /* ceil(cols / 32) */
    int shape_bits;    /* width of a group's shape index, ceil(log2 n_shapes) and at least 1 */
    size_t q_stride;   /* bytes of a row's q fields, ceil(n_groups * scale_bits / 8) */
    size_t p_stride;   /* the same for p */
    size_t idx_stride; /* the same for shape indices */
};

struct bcq_view {
    struct bcq_spec spec;
    struct bcq_layout layout;
    const uint32_t *planes; /* (rows, bits, plane_words): bit k%32 of word k/32 set = +1;
                                   bits past cols are 0 */
    const uint8_t *q;       /* (rows, q_stride): n_groups fields of scale_bits, low bits first */
    const uint8_t *p;       /* (rows, p_stride): n_groups fields of bias_bits */
    const uint8_t *shape;   /* COMPACT: (rows, bits) d_i; COMPACT_GROUP: (rows, idx_stride) */
    const uint8_t *shape_table; /* (n_shapes, bits) */
    const uint16_t *row_scale;  /* (rows, 2) fp16: s0, s1 */
    const uint16_t *alpha;      /* (rows, n_groups, bits) fp16; BCQ_WHOLE: (rows, n_groups) s */
    const uint16_t *beta;       /* (rows, n_groups) fp16 */
};

/* How devices that share a model share a matrix. The bias of one is given the same: it is split with
 * rows, and kept whole for sums. */
enum weight_split {
    SPLIT_NONE,  /* all of it on each */
    SPLIT_ROWS,  /* each computes a part of the outputs, from all inputs */
    SPLIT_INPUTS /* each has a part of the inputs and computes a part of each sum */
};

/* A linear layer's matrix, either dense (row-major) or binary-coded. */
struct weight_view {
    int is_bcq;
    struct bcq_view bcq; /* when is_bcq */
    enum dtype type;     /* when dense */
    int act_bits;        /* when is_bcq: 8 or 4 rounds what it is multiplied by; 0 and 16 do not */
    int rows, cols;      /* always */
    enum weight_split split;              /* for several devices; ignored by one */
    const void *data;                     /* (rows, cols) of type, when dense */
    const struct outliers_view *outliers; /* beside the codes; NULL without */
    const struct rotation_view *rotation; /* of the codes' matrix; NULL without */
};

/* Refuses outliers and rotations that are not this matrix's, or both at once. */
int weight_check_beside(const struct weight_view *v, struct error *err);

/* Refuses a spec outside the ranges above. */
int bcq_check(const struct bcq_spec *spec, struct error *err);

/* The layout that a checked spec implies; there is exactly one. */
void bcq_layout(struct bcq_layout *ret, const struct bcq_spec *spec);

/* Reads a block's header and checks it, the sizes, every d_i, every shape index and that the
 * fp16 parameters are finite. bytes must be 64-byte aligned and stay while ret is used. */
int bcq_parse(struct bcq_view *ret, const void *bytes, size_t n_bytes, struct error *err);

/* The two halves of bcq_parse(), for blocks whose sections lie elsewhere: a header of
 * BCQ_HEADER_BYTES; what d_i, indices and fp16 parameters may be. */
int bcq_parse_header(struct bcq_spec *spec, struct bcq_layout *layout, const void *header,
                     struct error *err);
int bcq_check_values(const struct bcq_view *w, struct error *err);

/* Writes the header into a zeroed block of layout.total bytes and points ret at its sections,
 * which the caller then fills (cast the const away: the block is the caller's). */
void bcq_format(struct bcq_view *ret, void *block, const struct bcq_spec *spec);

/* Field i of a packed row of width-bit fields; bcq_get_signed() sign-extends. */
unsigned bcq_get(const uint8_t *fields, int width, int i);
int bcq_get_signed(const uint8_t *fields, int width, int i);
void bcq_put(uint8_t *fields, int width, int i, unsigned value);

/* Integers of a compact group: d (bits), q, p. Compact kinds only. */
void bcq_group_codes(const struct bcq_view *w, int row, int group, int d[BCQ_MAX_BITS], int *q,
                     int *p);

/* Of a group of whole numbers: c of its BCQ_WHOLE_GROUP inputs, 0 past cols; and s. */
void bcq_whole_codes(const struct bcq_view *w, int row, int group, uint8_t *codes);
float bcq_whole_scale(const struct bcq_view *w, int row, int group);
/* n weights of a row of whole numbers from input first on, a multiple of BCQ_WHOLE_GROUP. */
void bcq_whole_expand(const struct bcq_view *w, int row, int first, int n, float *out);

/* Real parameters of a group in fp32: alpha[bits] and beta. Every kind but BCQ_WHOLE. */
void bcq_group_params(const struct bcq_view *w, int row, int group, float alpha[BCQ_MAX_BITS],
                      float *beta);

/* out: (cols). Expands one row; the specification that every kernel is tested against. */
void bcq_expand_row(const struct bcq_view *w, int row, float *out);

/* Bits per weight of the whole block, metadata included. */
double bcq_bits_per_weight(const struct bcq_spec *spec);

#endif
