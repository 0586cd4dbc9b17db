/* Groups that begin or end inside a table. With M the bits of a group's inputs in a table,
 * T[i | ~M] + T[i & M] is twice the signed sum of those inputs alone, so one pair of look-ups
 * serves whole and cut tables alike. Slower than the other forms; made to be right. */
#include "kernels/avx2/bcq.h"

/* Word sums of a plane over some tables: low and high bytes of even and of odd rows. */
struct words {
    __m256i lo[2], hi[2];
};

/* The low and high bytes of a table's entries; byte tables are taken apart. */
struct table {
    __m128i lo, hi;
};

static struct table table_of(const void *act, bool bytes, int i) {
    if (!bytes) {
        const struct avx2_bcq_act *x = act;
        return (struct table){_mm_load_si128((const void *)x->lo[i]),
                              _mm_load_si128((const void *)x->hi[i])};
    }
    const struct avx2_bcq_byte_act *x = act;
    __m128i v = _mm_load_si128((const void *)x->entry[i]);
    return (struct table){_mm_and_si128(v, _mm_set1_epi8(127)),
                          _mm_cmpgt_epi8(_mm_setzero_si128(), v)};
}

AVX2_INLINE void add_selected(struct words *s, __m256i selectors, const struct table *t) {
    const __m256i ones[2] = {_mm256_set1_epi16(1), _mm256_set1_epi16(0x0100)};
    __m256i l = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t->lo), selectors);
    __m256i h = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t->hi), selectors);
    for (int i = 0; i < 2; i++) {
        s->lo[i] = _mm256_add_epi16(s->lo[i], _mm256_maddubs_epi16(l, ones[i]));
        s->hi[i] = _mm256_add_epi16(s->hi[i], _mm256_maddubs_epi16(ones[i], h));
    }
}

/* The bits of table t's four inputs that are in [begin, end); all counted in the span. */
static int mask_of(int t, int begin, int end) {
    int mask = 0;
    for (int i = 0; i < 4; i++) mask |= (4 * t + i >= begin && 4 * t + i < end) << i;
    return mask;
}

/* t += alpha * (128 * hi + lo), in the order of rows. */
AVX2_INLINE void fold_plane(__m256 t[4], const struct words *s, const float *alpha) {
    const __m256i weights = _mm256_set1_epi32(128 << 16 | 1);
    for (int k = 0; k < 4; k++) {
        __m256i lo = s->lo[k / 2], hi = s->hi[k / 2];
        __m256i v = k % 2 ? _mm256_unpackhi_epi16(lo, hi) : _mm256_unpacklo_epi16(lo, hi);
        t[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(v, weights)),
                               _mm256_load_ps(alpha + 8 * k), t[k]);
    }
}

/* What the tables of a group's inputs lost, on either side of their halves. */
static int lost_by(const void *act, bool bytes, int begin, int end) {
    const struct avx2_bcq_act *x = act;
    int sum = 0;
    for (int i = begin / 4; !bytes && 4 * i < end; i++) sum += x->lost[i];
    return sum;
}

/* Twice the plain sum of a group's inputs, in units: the look-up with every bit set. */
static int plain_sum(const void *act, bool bytes, int begin, int end) {
    int sum = lost_by(act, bytes, begin, end);
    for (int i = begin / 4; 4 * i < end; i++) {
        const struct table t = table_of(act, bytes, i);
        const int8_t *lo = (const int8_t *)&t.lo, *hi = (const int8_t *)&t.hi;
        int mask = mask_of(i, begin, end);
        sum += 128 * (hi[15] + hi[mask]) + lo[15] + lo[mask];
    }
    return sum;
}

/* y += the share of inputs [begin, end) of a span, all of one group; code is the span's. */
static void add_part(float *y, const uint8_t *code, const float *params, int bits, const void *act,
                     bool bytes, int begin, int end) {
    const float *act_scale = act; /* both kinds of record begin with it */
    const __m256i low = _mm256_set1_epi8(15);
    __m256 t[4];
    for (int k = 0; k < 4; k++) t[k] = _mm256_setzero_ps();
    const __m256i lost = _mm256_set1_epi16((short)lost_by(act, bytes, begin, end));
    for (int plane = 0; plane < bits; plane++) {
        struct words s = {.lo = {lost, lost},
                          .hi = {_mm256_setzero_si256(), _mm256_setzero_si256()}};
        for (int i = begin / 4; 4 * i < end; i++) {
            __m256i v = avx2_bcq_load(code + (size_t)(i / 2 * bits + plane) * 32);
            __m256i mask = _mm256_set1_epi8((char)mask_of(i, begin, end));
            v = _mm256_and_si256(i % 2 ? _mm256_srli_epi16(v, 4) : v, low);
            const struct table from = table_of(act, bytes, i);
            add_selected(&s, _mm256_or_si256(v, _mm256_andnot_si256(mask, low)), &from);
            add_selected(&s, _mm256_and_si256(v, mask), &from);
        }
        fold_plane(t, &s, params + plane * AVX2_BCQ_ROWS);
    }
    const __m256 scale = _mm256_broadcast_ss(act_scale);
    const __m256 sum = _mm256_set1_ps((float)plain_sum(act, bytes, begin, end));
    for (int k = 0; k < 4; k++) {
        __m256 beta = _mm256_load_ps(params + bits * AVX2_BCQ_ROWS + 8 * k);
        __m256 v = _mm256_fmadd_ps(beta, sum, t[k]);
        _mm256_store_ps(y + 8 * k, _mm256_fmadd_ps(v, scale, _mm256_load_ps(y + 8 * k)));
    }
}

static void one_block(float *y, const uint8_t *block, const struct avx2_bcq_shape *s,
                      const struct avx2_bcq_mul *c, int token) {
    const int bits = c->w->bits;
    for (int pos = 0, end; pos < c->w->cols; pos = end) {
        int span = pos / AVX2_BCQ_SPAN, from = span * AVX2_BCQ_SPAN, group = pos / s->group;
        end = avx2_bcq_min((group + 1) * s->group, from + AVX2_BCQ_SPAN);
        if (end > c->w->cols) end = c->w->cols;
        add_part(y, block + s->head + (size_t)(span * AVX2_BCQ_COLUMNS * bits) * 32,
                 (const float *)(const void *)(block + (size_t)group * s->params), bits,
                 avx2_bcq_at(c->act, c->bytes, (size_t)span * (size_t)c->n + (size_t)token),
                 c->bytes, pos - from, end - from);
    }
}

void avx2_bcq_mul_odd(const struct avx2_bcq_mul *c) {
    struct avx2_bcq_shape s;
    avx2_bcq_shape(&s, c->w);
    for (int b = c->b0; b < c->b1; b++)
        for (int token = 0; token < c->n; token++) {
            _Alignas(32) float y[AVX2_BCQ_ROWS] = {0};
            int row0 = b * AVX2_BCQ_ROWS;
            one_block(y, c->packed + (size_t)b * s.block_bytes, &s, c, token);
            avx2_bcq_store(c->y + (size_t)token * c->ldy + row0, y, c->w->rows - row0);
        }
}
