/* Products with planes whose alphas are any numbers. Bit j of a half is 2^(j - 24) as long as
 * nothing else is set, a subnormal: so one AND makes two weights of 0 or 1, and the power of two is
 * in the packed input. Each plane has its sum over a stretch, which its alpha then weighs. */
#include "kernels/cuda/product.cuh"

/* STEPS_EACH: mma() steps in a stretch of inputs with the same alphas. */
template <int BITS, int STEPS_EACH> struct planes_form {
    enum { CHUNKS = 1, MANY = BITS > 2 ? 4 : 8, STRETCHES = STEPS / STEPS_EACH };
    enum { PARAMS = (BITS + 2) / 2, FOLDS = 1 };
    template <int TILES> using sums = part_sums<4, TILES>;

    template <int TILES, bool STAGED> static constexpr __host__ __device__ int blocks() {
        return 2;
    }

    struct words {
        uint32_t plane[2 * BITS]; /* (row g or g + 8, plane) */
        uint32_t param[STRETCHES][2][PARAMS];
    };

    const uint32_t *unit0, *params0;
    int lane, n_chunks;

    static __host__ __device__ __forceinline__ int units(int cols) { return chunks_of(cols); }

    __device__ __forceinline__ void start(const struct product_set &set, const struct product &p,
                                          int tile, int lane_) {
        lane = lane_;
        n_chunks = chunks_of(set.cols);
        size_t unit = (size_t)tile * (size_t)n_chunks;
        unit0 = p.data + unit * (2 * BITS * 32);
        params0 = p.params + unit * (STRETCHES * TILE_ROWS * PARAMS);
    }

    __device__ __forceinline__ void load(words &w, int u) const {
        const uint32_t *unit = unit0 + (size_t)u * (2 * BITS * 32);
#pragma unroll
        for (int i = 0; i + 4 <= 2 * BITS; i += 4) {
            uint4 v = load_once(reinterpret_cast<const uint4 *>(unit + i * 32) + lane);
            w.plane[i] = v.x;
            w.plane[i + 1] = v.y;
            w.plane[i + 2] = v.z;
            w.plane[i + 3] = v.w;
        }
        if (BITS % 2) {
            uint2 v = load_once(reinterpret_cast<const uint2 *>(unit + (2 * BITS - 2) * 32) + lane);
            w.plane[2 * BITS - 2] = v.x;
            w.plane[2 * BITS - 1] = v.y;
        }
        const uint32_t *param = params0 + (size_t)u * (STRETCHES * TILE_ROWS * PARAMS);
#pragma unroll
        for (int s = 0; s < STRETCHES; s++)
#pragma unroll
            for (int high = 0; high < 2; high++)
#pragma unroll
                for (int i = 0; i < PARAMS; i++)
                    w.param[s][high][i] =
                        __ldg(param + (s * TILE_ROWS + lane / 4 + 8 * high) * PARAMS + i);
    }

    /* i = BITS: beta. */
    static __device__ __forceinline__ float param_of(const uint32_t *param, int i) {
        return from_half(param[i / 2] >> 16 * (i % 2) & 0xffffu);
    }

    template <int TILES, class COLUMNS>
    __device__ __forceinline__ void multiply(sums<TILES> &sum, const words &w, int u, int,
                                             const COLUMNS &columns, const struct packed_input &x,
                                             int first) const {
        /* Sums of x over stretches: the level of the pyramid that fits. */
        constexpr int LEVEL = STEPS_EACH == 1 ? 0 : STEPS_EACH == 2 ? 1 : STEPS_EACH == 4 ? 2 : 3;
        const float *stretch_sums = x.sums + (size_t)n_chunks * (size_t)x.n_tokens *
                                                 (LEVEL == 0   ? 0
                                                  : LEVEL == 1 ? 8
                                                  : LEVEL == 2 ? 12
                                                               : 14);
        float acc[BITS][TILES][4];
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            uint4 b[TILES];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) b[tile] = columns.get(u, pair, tile);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int s = 2 * pair + half;
                if (s % STEPS_EACH == 0)
#pragma unroll
                    for (int i = 0; i < BITS * TILES * 4; i++)
                        acc[i / (TILES * 4)][i / 4 % TILES][i % 4] = 0;
#pragma unroll
                for (int i = 0; i < BITS; i++) {
                    uint32_t a[4];
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        uint32_t word = w.plane[j % 2 * BITS + i];
                        if (s >= 4) word >>= 8;
                        a[j] = word & (0x00010001u << ((2 * s + j / 2) & 7));
                    }
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++)
                        mma(acc[i][tile], a, half ? b[tile].z : b[tile].x,
                            half ? b[tile].w : b[tile].y);
                }
                if ((s + 1) % STEPS_EACH == 0) {
                    int stretch = s / STEPS_EACH;
#pragma unroll
                    for (int high = 0; high < 2; high++) {
                        const uint32_t *param = w.param[stretch][high];
                        float beta = param_of(param, BITS);
#pragma unroll
                        for (int i = 0; i < BITS; i++) beta -= param_of(param, i);
#pragma unroll
                        for (int i = 0; i < 2 * TILES; i++) {
                            int tile = i / 2, corner = 2 * high + i % 2;
                            int token = first + tile * TILE_COLS + lane % 4 * 2 + i % 2;
                            float v = 0;
                            if (token < x.n_tokens)
                                v = beta *
                                    __ldg(stretch_sums +
                                          (size_t)(u * STRETCHES + stretch) * (size_t)x.n_tokens +
                                          token);
#pragma unroll
                            for (int plane = 0; plane < BITS; plane++)
                                v = fmaf(param_of(param, plane) * 33554432.f, /* 2 * 2^24 */
                                         acc[plane][tile][corner], v);
                            sum.v[tile * 4 + corner] += v;
                        }
                    }
                }
            }
        }
    }

    static __device__ __forceinline__ void fold(float out[FOLDS], const float *v, int corner) {
        out[0] = v[corner];
    }
    static __device__ __forceinline__ float factor(const struct product &, int, int) { return 1; }
    static __device__ __forceinline__ float merge(float total, float, float v) { return total + v; }
};

template <int BITS>
static cudaError_t run(const struct product_kind *kind, struct product_set *set,
                       cudaStream_t stream) {
    switch (kind->steps) {
    case 1:
        return product_launch<planes_form<BITS, 1>>(set, stream);
    case 2:
        return product_launch<planes_form<BITS, 2>>(set, stream);
    case 4:
        return product_launch<planes_form<BITS, 4>>(set, stream);
    default:
        return product_launch<planes_form<BITS, 8>>(set, stream);
    }
}

cudaError_t planes_run(const struct product_kind *kind, struct product_set *set,
                       cudaStream_t stream) {
    switch (kind->bits) {
    case 1:
        return run<1>(kind, set, stream);
    case 2:
        return run<2>(kind, set, stream);
    case 3:
        return run<3>(kind, set, stream);
    default:
        return run<4>(kind, set, stream);
    }
}
