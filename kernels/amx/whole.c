/* Whole numbers, several tokens: tiles of 16 rows x 32 inputs x 8 tokens, whose high and low bytes lie
 * one after the other in a tile, so that a product has the sums of both. Bytes are multiplied as they
 * lie in memory; smaller codes become signed bytes once for all tokens. */
#include "kernels/avx512/whole.h"

#include "kernels/amx/amx.h"
#include "kernels/ops.h"

enum {
    TOKENS = 8, /* of a tile */
    PARTS = 2,  /* high and low bytes */
    HALVES = 2, /* of a panel */
    LINE = 64,
    CHUNK = 16,       /* groups that all tokens use from the first cache */
    FAR = CHUNK,      /* groups ahead, for the second cache */
    NEAR = 2,         /* for the first */
    FEW = 4,          /* tokens, which AVX-512 multiplies as fast */
    MOST_TOKENS = 128 /* that share a chunk */
};

/* Tile registers. Macros, because gcc's intrinsics make text of them. */
#define SUM_0_0 0
#define SUM_0_1 1
#define SUM_1_0 2
#define SUM_1_1 3
#define X       4
#define W_0     5
#define W_1     6

/* A half's products into `now`. Those of the group before, in `last`, are stored first: a store that waits for
 * its products holds up the next ones. */
#define HALF(form, codes, now, w, last, to)                                                        \
    do {                                                                                           \
        if (to) _tile_stored(last, to, LINE);                                                      \
        if (codes) {                                                                               \
            _tile_zero(now);                                                                       \
            if (form == WHOLE_BYTES)                                                               \
                _tile_dpbsud(now, X, w);                                                           \
            else                                                                                   \
                _tile_dpbssd(now, X, w);                                                           \
        }                                                                                          \
    } while (0)

static void configure(void) {
    struct amx_shape shapes[8] = {{0}};
    for (int i = 0; i <= W_1; i++) {
        shapes[i].line_bytes = i == X ? WHOLE_GROUP : LINE;
        shapes[i].lines = i < W_0 ? PARTS * TOKENS : WHOLE_QUADS;
    }
    amx_configure(shapes);
}

/* -- Inputs ----------------------------------------------------------------------------------- */

/* A group of eight tokens: a tile. */
struct input {
    int8_t bytes[PARTS][TOKENS][WHOLE_GROUP]; /* high, low */
};
struct factors {
    float scales[TOKENS];
    int32_t sums[TOKENS]; /* of the whole numbers */
};

static size_t sets_of(int n) { return ((size_t)n + TOKENS - 1) / TOKENS; }

/* Inputs, by eight tokens and groups, then their factors. */
static struct factors *factors_of(const void *act, size_t groups, int n) {
    return (struct factors *)((struct input *)act + groups * sets_of(n));
}

static size_t act_bytes(int act_bits, int cols, int n) {
    size_t tiles =
        sets_of(n) * whole_groups(cols) * (sizeof(struct input) + sizeof(struct factors));
    size_t few = avx512_whole_act_bytes(act_bits, cols, n);
    return tiles > few ? tiles : few;
}

static void pack_token(struct input *to, struct factors *factors, int t, const float *x, int cols) {
    for (int k = 0; k < cols; k += WHOLE_GROUP, to++, factors++, x += WHOLE_GROUP) {
        struct whole_factor f =
            whole_round(to->bytes[0][t], to->bytes[1][t], x, (size_t)(cols - k));
        factors->scales[t] = f.scale;
        factors->sums[t] = f.sum;
    }
}

/* The tokens that fill up the last set. */
static void pack_nothing(struct input *to, struct factors *factors, int t, size_t groups) {
    for (size_t g = 0; g < groups; g++) {
        for (int part = 0; part < PARTS; part++)
            memset(to[g].bytes[part][t], 0, sizeof to[g].bytes[part][t]);
        factors[g].scales[t] = 0;
        factors[g].sums[t] = 0;
    }
}

static void pack_tiles(void *act, int cols, const float *x, size_t ldx, int n, int part,
                       int n_parts) {
    size_t groups = whole_groups(cols);
    int t0 = bcq_first_token(n, part, n_parts), t1 = bcq_first_token(n, part + 1, n_parts);
    int end = part + 1 < n_parts ? t1 : (int)sets_of(n) * TOKENS;
    for (int t = t0; t < end; t++) {
        struct input *to = (struct input *)act + (size_t)(t / TOKENS) * groups;
        struct factors *factors = factors_of(act, groups, n) + (size_t)(t / TOKENS) * groups;
        if (t < t1)
            pack_token(to, factors, t % TOKENS, x + (size_t)t * ldx, cols);
        else
            pack_nothing(to, factors, t % TOKENS, groups);
    }
}

/* -- Products --------------------------------------------------------------------------------- */

/* Of eight tokens: high, then low bytes. */
struct sums {
    __m512i of[HALVES][PARTS][TOKENS];
};

/* Codes as bytes, in the order of WHOLE_BYTES, of some groups. */
struct expanded {
    __m512i codes[CHUNK][WHOLE_QUADS][HALVES];
};

/* Some groups of a panel. */
struct chunk {
    const char *at; /* scales of the first group */
    struct expanded *e;
    int bits, n; /* n: groups */
};

AVX512_INLINE void expand(enum whole_form form, const struct chunk *c, int g) {
    const char *words =
        c->at + (size_t)g * whole_group_bytes(form, WHOLE_ROWS) + whole_scales_bytes(WHOLE_ROWS);
    const __m512i zero = _mm512_set1_epi8((char)(1 << (c->bits - 1)));
    if (form == WHOLE_BYTES) return;
    AVX512_UNROLL for (int j = 0; j < WHOLE_QUADS; j++) {
        for (int h = 0; h < HALVES; h++)
            c->e->codes[g][j][h] = _mm512_sub_epi8(whole_codes(form, words, h, j), zero);
    }
}

/* Where the codes of a group are bytes. */
AVX512_INLINE const char *bytes_of(enum whole_form form, const struct chunk *c, int g) {
    if (form != WHOLE_BYTES) return (const char *)c->e->codes[g];
    return c->at + (size_t)g * whole_group_bytes(form, WHOLE_ROWS) + whole_scales_bytes(WHOLE_ROWS);
}

/* 256 times the sums of high bytes plus those of low ones. Words can hold sums of high bytes with four bits,
 * at most 32 * 127 * 8. */
AVX512_INLINE __m512i joined(enum whole_form form, __m512i high, __m512i low) {
    if (form == WHOLE_NIBBLES) return _mm512_dpwssd_epi32(low, high, _mm512_set1_epi32(256));
    return _mm512_add_epi32(low, _mm512_slli_epi32(high, 8));
}

AVX512_INLINE void add(enum whole_form form, __m512 (*y)[HALVES], const struct sums *sums,
                       const int bits, const char *scales, const struct factors *factors) {
    int32_t zeros[TOKENS];
    if (form == WHOLE_BYTES) {
        __m256i of_x = _mm256_loadu_si256((const __m256i *)factors->sums);
        _mm256_storeu_si256((__m256i *)zeros, _mm256_slli_epi32(of_x, (unsigned)bits - 1));
    }
    AVX512_UNROLL for (int h = 0; h < HALVES; h++) {
        const __m512 s = whole_scales(scales, h);
        AVX512_UNROLL for (int t = 0; t < TOKENS; t++) {
            const __m512 f = _mm512_set1_ps(factors->scales[t]);
            __m512i v = joined(form, sums->of[h][0][t], sums->of[h][1][t]);
            if (form == WHOLE_BYTES) v = _mm512_sub_epi32(v, _mm512_set1_epi32(zeros[t]));
            y[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), _mm512_mul_ps(s, f), y[t][h]);
        }
    }
}

/* Products of a group with codes into the sums of a parity; the other ones, of the group before, go to
 * `before`. Either may be NULL. */
AVX512_INLINE void multiply(enum whole_form form, const int parity, const struct input *x,
                            const char *codes, struct sums *before) {
    AMX_BEFORE_LOADS();
    if (codes) {
        _tile_loadd(X, x, WHOLE_GROUP);
        _tile_loadd(W_0, codes, HALVES * LINE);
        _tile_loadd(W_1, codes + LINE, HALVES * LINE);
    }
    if (parity) {
        HALF(form, codes, SUM_1_0, W_0, SUM_0_0, before ? before->of[0] : NULL);
        HALF(form, codes, SUM_1_1, W_1, SUM_0_1, before ? before->of[1] : NULL);
    } else {
        HALF(form, codes, SUM_0_0, W_0, SUM_1_0, before ? before->of[0] : NULL);
        HALF(form, codes, SUM_0_1, W_1, SUM_1_1, before ? before->of[1] : NULL);
    }
    AMX_BEFORE_LOADS();
}

/* Lines of a group far ahead, so that n passes fetch all of it; the first fetches those of one near. */
AVX512_INLINE void prefetch(enum whole_form form, const struct chunk *c, int g, int pass, int n) {
    const int lines = (int)(whole_group_bytes(form, WHOLE_ROWS) / LINE);
    const char *far = c->at + (size_t)(g + FAR) * whole_group_bytes(form, WHOLE_ROWS);
    const char *near = c->at + (size_t)(g + NEAR) * whole_group_bytes(form, WHOLE_ROWS);
    for (int i = lines * pass / n; i < lines * (pass + 1) / n; i++)
        _mm_prefetch(far + (size_t)i * LINE, _MM_HINT_T1);
    for (int i = 0; pass == 0 && i < lines; i++) _mm_prefetch(near + (size_t)i * LINE, _MM_HINT_T0);
}

/* y: (TOKENS) of pass `pass` of n. The first pass expands. */
AVX512_INLINE void add_chunk(__m512 (*y)[HALVES], enum whole_form form, const struct chunk *c,
                             const struct input *x, const struct factors *factors, const bool first,
                             int pass, int n) {
    const size_t bytes = whole_group_bytes(form, WHOLE_ROWS);
    struct sums sums[2];
    __m512 sum[TOKENS][HALVES];
    AVX512_UNROLL for (int t = 0; t < TOKENS; t++) sum[t][0] = y[t][0], sum[t][1] = y[t][1];
    if (first) expand(form, c, 0);
    for (int g0 = 0; g0 <= c->n; g0 += 2) {
        AVX512_UNROLL for (int parity = 0; parity < 2; parity++) {
            const int g = g0 + parity;
            struct sums *before = g > 0 ? &sums[1 - parity] : NULL;
            if (g > c->n) break;
            multiply(form, parity, &x[g], g < c->n ? bytes_of(form, c, g) : NULL, before);
            if (g < c->n) prefetch(form, c, g, pass, n);
            if (first && g + 1 < c->n) expand(form, c, g + 1);
            if (before)
                add(form, sum, before, c->bits, c->at + (size_t)(g - 1) * bytes, &factors[g - 1]);
        }
    }
    AVX512_UNROLL for (int t = 0; t < TOKENS; t++) y[t][0] = sum[t][0], y[t][1] = sum[t][1];
}

/* y: n_rows rows of a panel for n tokens, all sets of which are x. */
AVX512_INLINE void panel(float *y, size_t ldy, enum whole_form form, const char *w, int bits,
                         int n_rows, const struct input *x, const struct factors *factors,
                         size_t groups, int n) {
    struct expanded e; /* not used for bytes */
    __m512 sums[MOST_TOKENS][HALVES];
    const int sets = (int)sets_of(n);
    for (int t = 0; t < sets * TOKENS; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    const size_t most = form == WHOLE_BYTES && sets == 1 ? groups : CHUNK;
    for (size_t g = 0; g < groups; g += most) {
        const int some = groups - g < most ? (int)(groups - g) : (int)most;
        const struct chunk c = {w + g * whole_group_bytes(form, WHOLE_ROWS), &e, bits, some};
        add_chunk(sums, form, &c, x + g, factors + g, true, 0, sets);
        for (int i = 1; i < sets; i++) {
            const size_t at = (size_t)i * groups + g;
            add_chunk(sums + i * TOKENS, form, &c, x + at, factors + at, false, i, sets);
        }
    }
    for (int t = 0; t < n; t++) {
        whole_store(y + (size_t)t * ldy, 0, n_rows, sums[t][0]);
        whole_store(y + (size_t)t * ldy, WHOLE_LANES, n_rows, sums[t][1]);
    }
}

AVX512_INLINE void mul_form(float *y, size_t ldy, enum whole_form form, const char *packed,
                            const struct bcq_spec *w, const void *act, int n, int b0, int b1) {
    const size_t groups = whole_groups(w->cols),
                 bytes = groups * whole_group_bytes(form, WHOLE_ROWS);
    for (int b = b0; b < b1; b++)
        for (int t = 0; t < n; t += MOST_TOKENS) {
            const size_t at = (size_t)(t / TOKENS) * groups;
            panel(y + (size_t)t * ldy + (size_t)b * WHOLE_ROWS, ldy, form,
                  packed + (size_t)b * bytes, w->bits, w->rows - b * WHOLE_ROWS,
                  (const struct input *)act + at, factors_of(act, groups, n) + at, groups,
                  n - t < MOST_TOKENS ? n - t : MOST_TOKENS);
        }
}

static void mul_tiles(float *y, size_t ldy, const void *packed, const struct bcq_spec *w,
                      const void *act, int n, int b0, int b1) {
    const enum whole_form form = whole_form_of(w->bits);
    configure();
    if (form == WHOLE_NIBBLES) mul_form(y, ldy, WHOLE_NIBBLES, packed, w, act, n, b0, b1);
    if (form == WHOLE_SIXES) mul_form(y, ldy, WHOLE_SIXES, packed, w, act, n, b0, b1);
    if (form == WHOLE_BYTES) mul_form(y, ldy, WHOLE_BYTES, packed, w, act, n, b0, b1);
    /* Tiles in use cost every switch of threads, and a core its deeper sleep. */
    _tile_release();
}

static void act_pack(void *act, int act_bits, const struct bcq_spec *w, const float *x, size_t ldx,
                     int n, int part, int n_parts) {
    if (n > FEW)
        pack_tiles(act, w->cols, x, ldx, n, part, n_parts);
    else
        avx512_whole_act_pack(act, act_bits, w, x, ldx, n, part, n_parts);
}

static void mul(float *y, size_t ldy, const void *packed, const struct bcq_spec *w, const void *act,
                int act_bits, int n, int b0, int b1) {
    if (n > FEW)
        mul_tiles(y, ldy, packed, w, act, n, b0, b1);
    else
        avx512_whole_mul(y, ldy, packed, w, act, act_bits, n, b0, b1);
}

void amx_whole_init(struct bcq_ops *whole) {
    whole->act_bytes = act_bytes;
    whole->act_pack = act_pack;
    whole->mul = mul;
}
