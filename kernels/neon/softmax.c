#include "kernels/neon/attention.h"

#include <math.h>

/* p: from a row's products to its scores, of positions that are not seen -infinity; returns the largest,
 * NaN aside. */
NEON_INLINE float find_scores(float *p, const struct neon_seen *seen, const struct neon_scales *c,
                              float slope) {
    static const float lane[NEON_LANES] = {0, 1, 2, 3};
    float32x4_t most = vdupq_n_f32(-INFINITY);
    for (int i = 0; i < KV_BLOCK_TOKENS; i += NEON_LANES) {
        float32x4_t score = vld1q_f32(p + i);
        if (c->k) score = vmulq_f32(score, vld1q_f32(c->k + i));
        score = vmulq_n_f32(score, c->scale);
        if (c->slopes) {
            float32x4_t away = vaddq_f32(vld1q_f32(lane), vdupq_n_f32((float)(seen->offset + i)));
            score = vfmaq_n_f32(score, away, slope);
        }
        vst1q_f32(p + i, score);
    }
    for (int j = 0; j < seen->low; j++) p[j] = -INFINITY;
    for (int j = seen->high; j < KV_BLOCK_TOKENS; j++) p[j] = -INFINITY;
    for (int i = 0; i < KV_BLOCK_TOKENS; i += NEON_LANES)
        most = vmaxnmq_f32(most, vld1q_f32(p + i));
    return vmaxnmvq_f32(most);
}

/* p: from scores to terms; returns their sum. */
NEON_INLINE float32x4_t find_terms(float *p, const float *v, float top) {
    float32x4_t term[KV_BLOCK_TOKENS / NEON_LANES];
    NEON_UNROLL for (int e = 0; e < KV_BLOCK_TOKENS / NEON_LANES; e++) {
        const int i = e * NEON_LANES;
        term[e] = neon_exp(vsubq_f32(vld1q_f32(p + i), vdupq_n_f32(top)));
        vst1q_f32(p + i, v ? vmulq_f32(term[e], vld1q_f32(v + i)) : term[e]);
    }
    return vaddq_f32(vaddq_f32(term[0], term[1]), vaddq_f32(term[2], term[3]));
}

void neon_softmax(int n, float (*p)[KV_BLOCK_TOKENS], float *keep, struct neon_softmax *s,
                  const struct neon_seen *seen, const struct neon_scales *c) {
    float tops[NEON_ROWS], falls[NEON_ROWS] = {0};
    /* Pass by pass, because each row waits long for its own results. */
    for (int r = 0; r < n; r++) {
        tops[r] = s[r].top;
        if (seen[r].high <= seen[r].low) continue;
        const float top = find_scores(p[r], &seen[r], c, c->slopes ? c->slopes[r] : 0);
        if (!(top > s[r].top)) continue;
        tops[r] = top;
        falls[r] = s[r].top - top;
    }
    vst1q_f32(keep, neon_exp(vld1q_f32(falls)));
    for (int r = 0; r < n; r++) {
        if (seen[r].high <= seen[r].low) continue;
        const float32x4_t sum = find_terms(p[r], c->v, tops[r]);
        s[r] = (struct neon_softmax){vfmaq_n_f32(sum, s[r].total, keep[r]), tops[r]};
    }
}
