/* compact.cuh - weights of compact matrices, as products take them.
 *
 * Owns      nothing.
 * Borrows   see product.h.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      about 350 instructions of a warp for 16 rows by 256 inputs.
 *
 * W = s0/2 q v + s1 p, where v, a small integer, is looked up by the weight's code. q v is exact in
 * a half (q v <= 2047 is checked when packing), so the planes cost one multiplication together; p
 * meets the groups' sums of x in a product of its own. */
#ifndef KERNELS_CUDA_COMPACT_CUH
#define KERNELS_CUDA_COMPACT_CUH

#include "kernels/cuda/wide.cuh"

enum { LEVEL_ZERO = 64 /* a level's byte is v + 64 */ };

template <int BITS, bool SHAPES> struct compact_form {
    enum { CHUNKS = 2, MANY = 8, LEVEL_WORDS = BITS == 4 ? 4 : 2 };
    enum { WORDS = 4 * BITS + 3 + (SHAPES ? 2 : 0), FOLDS = 2 };
    static constexpr bool OFFSETS = true;                  /* p x has sums of its own */
    template <int TILES> using sums = part_sums<8, TILES>; /* 4 of q v x, 4 of p x for a tile */

    /* Blocks of few_tokens() for a multiprocessor, which bound its registers: three hide the loads
     * of weights better than two; more would spill. */
    template <int TILES, bool STAGED> static constexpr __host__ __device__ int blocks() {
        return TILES == 1 && STAGED && BITS < 4 && !SHAPES                      ? 3
               : TILES == 1 || (TILES == 2 && STAGED && !(BITS == 4 && SHAPES)) ? 2
                                                                                : 1;
    }

    struct words {
        uint32_t codes[4 * BITS]; /* (chunk, row g or g + 8, word) */
        uint32_t q;               /* nibbles: (chunk, row, group) */
        uint32_t p[2];            /* bytes: (row, group) of each chunk */
        uint32_t shape[2];        /* the same */
    };

    const uint32_t *unit0;
    const uint32_t *shape_levels;
    uint32_t level[2][LEVEL_WORDS];
    int lane;

    static __host__ __device__ __forceinline__ int units(int cols) { return pairs_of(cols); }

    __device__ __forceinline__ void start(const struct product_set &set, const struct product &p,
                                          int tile, int lane_) {
        shape_levels = p.levels;
        lane = lane_;
        unit0 = p.data + (size_t)tile * (size_t)units(set.cols) * (WORDS * 32);
#pragma unroll
        for (int high = 0; high < 2; high++)
#pragma unroll
            for (int i = 0; i < LEVEL_WORDS; i++)
                level[high][i] =
                    SHAPES
                        ? 0
                        : __ldg(p.levels +
                                (size_t)(tile * TILE_ROWS + lane / 4 + 8 * high) * LEVEL_WORDS + i);
    }

    __device__ __forceinline__ void load(words &w, int u) const {
        const uint32_t *unit = unit0 + (size_t)u * (WORDS * 32);
#pragma unroll
        for (int i = 0; i < BITS; i++) {
            uint4 v = load_once(reinterpret_cast<const uint4 *>(unit + i * 128) + lane);
            w.codes[4 * i] = v.x;
            w.codes[4 * i + 1] = v.y;
            w.codes[4 * i + 2] = v.z;
            w.codes[4 * i + 3] = v.w;
        }
        unit += BITS * 128;
        w.q = load_once(unit + lane);
        uint2 p = load_once(reinterpret_cast<const uint2 *>(unit + 32) + lane);
        w.p[0] = p.x;
        w.p[1] = p.y;
        if (SHAPES) {
            uint2 s = load_once(reinterpret_cast<const uint2 *>(unit + 96) + lane);
            w.shape[0] = s.x;
            w.shape[1] = s.y;
        }
    }

    /* Eight codes in nibbles, of steps 2 n and 2 n + 1. */
    static __device__ __forceinline__ uint32_t nibbles(const uint32_t *w, int n) {
        if (BITS == 1) return w[0] >> n & 0x11111111u;
        if (BITS == 2) return w[n / 2] >> n % 2 * 2 & 0x33333333u;
        if (BITS == 4) return w[n];
        if (n < 3) return w[n] & 0x77777777u;
        return (w[0] >> 3 & 0x11111111u) | (w[BITS > 1 ? 1 : 0] >> 2 & 0x22222222u) |
               (w[BITS > 2 ? 2 : 0] >> 1 & 0x44444444u);
    }

    /* Four codes to four level bytes. */
    static __device__ __forceinline__ uint32_t look_up(const uint32_t *table, uint32_t codes) {
        if (BITS < 4) return pick_bytes(table[0], table[1], codes);
        uint32_t low = pick_bytes(table[0], table[1], codes & 0x7777u);
        uint32_t high = pick_bytes(table[LEVEL_WORDS - 2], table[LEVEL_WORDS - 1], codes & 0x7777u);
        uint32_t mask = pick_bytes(0x0000ff00u, 0, codes >> 3 & 0x1111u);
        return (low & ~mask) | (high & mask);
    }

    /* What a group of a chunk turns codes into halves with, for rows g and g + 8. */
    struct group_tables {
        uint32_t q[2], offset[2], level[2][LEVEL_WORDS];
    };

    __device__ __forceinline__ void tables_of(group_tables &to, const words &w, int c,
                                              int group) const {
#pragma unroll
        for (int high = 0; high < 2; high++) {
            uint32_t v = w.q >> (c * 16 + high * 8 + group * 4) & 15u;
            uint32_t half = half2_add(0x64006400u | v * 0x10001u, 0xe400e400u); /* - 1024 */
            to.q[high] = half;
            to.offset[high] = half2_mul(half, 0xe440e440u); /* -(1024 + LEVEL_ZERO) q */
            uint32_t shape = SHAPES ? w.shape[c] >> (high * 16 + group * 8) & 255u : 0;
#pragma unroll
            for (int i = 0; i < LEVEL_WORDS; i++)
                to.level[high][i] =
                    SHAPES ? __ldg(shape_levels + shape * LEVEL_WORDS + i) : level[high][i];
        }
    }

    /* The A sides of steps 2 n and 2 n + 1 of chunk c. */
    __device__ __forceinline__ void expand(uint32_t a[2][4], const words &w,
                                           const group_tables &tables, int c, int n) const {
        uint32_t codes[2];
#pragma unroll
        for (int high = 0; high < 2; high++)
            codes[high] = nibbles(w.codes + (c * 2 + high) * BITS, n);
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int high = 0; high < 2; high++) {
                uint32_t bytes = look_up(tables.level[high], codes[high] >> 16 * step);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    uint32_t raw = pick_bytes(bytes, 0x64646464u, r ? 0x4342u : 0x4140u);
                    a[step][2 * r + high] = half2_fma(raw, tables.q[high], tables.offset[high]);
                }
            }
    }

    /* The A side of a unit's p: 16 groups. */
    static __device__ __forceinline__ void expand_betas(uint32_t a[4], uint32_t p0, uint32_t p1) {
#pragma unroll
        for (int i = 0; i < 4; i++) { /* i: chunk and row; bytes are p + 128 */
            uint32_t raw = pick_bytes(i / 2 ? p1 : p0, 0x64646464u, i % 2 ? 0x4342u : 0x4140u);
            a[i] = half2_add(raw, 0xe480e480u); /* - (1024 + 128) */
        }
    }

    /* The A sides of a chunk's steps 2 n and 2 n + 1, and of a unit's p. */
    __device__ __forceinline__ void sides(uint32_t a[2][4], const words &w, int c, int n) const {
        group_tables tables;
        tables_of(tables, w, c, n / 2);
        expand(a, w, tables, c, n);
    }
    __device__ __forceinline__ void offset_sides(uint32_t a[4], const words &w) const {
        expand_betas(a, w.p[0], w.p[1]);
    }

    template <int TILES, class COLUMNS>
    __device__ __forceinline__ void multiply(sums<TILES> &sum, const words &w, int u, int c,
                                             const COLUMNS &columns, const struct packed_input &,
                                             int) const {
        group_tables tables[2];
        tables_of(tables[0], w, c, 0);
        tables_of(tables[1], w, c, 1);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            uint32_t a[2][4];
            expand(a, w, tables[n / 2], c, n);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                uint4 b = columns.get(u * 2 + c, n, tile);
                mma(sum.v + tile * 8, a[0], b.x, b.y);
                mma(sum.v + tile * 8, a[1], b.z, b.w);
            }
        }
        if (c == 1) {
            uint32_t a[4];
            expand_betas(a, w.p[0], w.p[1]);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                uint4 b = columns.group(u, tile);
                mma(sum.v + tile * 8 + 4, a, b.x, b.y);
                mma(sum.v + tile * 8 + 4, a, b.z, b.w);
            }
        }
    }

    /* Sums of q v x and of p x. */
    static __device__ __forceinline__ void fold(float out[FOLDS], const float *v, int corner) {
        out[0] = v[corner];
        out[1] = v[4 + corner];
    }
    static __device__ __forceinline__ float factor(const struct product &p, int row, int i) {
        return __ldg(p.scales + 2 * row + i);
    }
    static __device__ __forceinline__ float merge(float total, float factor, float v) {
        return fmaf(factor, v, total);
    }
};

#endif
