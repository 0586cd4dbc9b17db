/* halves.cuh - weights of fp16 matrices, as products take them: the A side as it lies in memory.
 *
 * Owns      nothing.
 * Borrows   see product.h.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      2 bytes a weight. */
#ifndef KERNELS_CUDA_HALVES_CUH
#define KERNELS_CUDA_HALVES_CUH

#include "kernels/cuda/wide.cuh"

struct halves_form {
    enum { CHUNKS = 1, MANY = 8, FOLDS = 1 };
    static constexpr bool OFFSETS = false;
    template <int TILES> using sums = part_sums<4, TILES>;

    template <int TILES, bool STAGED> static constexpr __host__ __device__ int blocks() {
        return 2;
    }

    struct words {
        uint4 step[STEPS];
    };

    const uint4 *unit0;
    int lane;

    static __host__ __device__ __forceinline__ int units(int cols) { return chunks_of(cols); }

    __device__ __forceinline__ void start(const struct product_set &set, const struct product &p,
                                          int tile, int lane_) {
        lane = lane_;
        unit0 = reinterpret_cast<const uint4 *>(p.data) +
                (size_t)tile * (size_t)units(set.cols) * (STEPS * 32);
    }

    __device__ __forceinline__ void load(words &w, int u) const {
#pragma unroll
        for (int s = 0; s < STEPS; s++)
            w.step[s] = load_once(unit0 + ((size_t)u * STEPS + (size_t)s) * 32 + lane);
    }

    __device__ __forceinline__ void sides(uint32_t a[2][4], const words &w, int, int n) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 &v = w.step[2 * n + i];
            a[i][0] = v.x;
            a[i][1] = v.y;
            a[i][2] = v.z;
            a[i][3] = v.w;
        }
    }
    __device__ __forceinline__ void offset_sides(uint32_t[4], const words &) const {}

    template <int TILES, class COLUMNS>
    __device__ __forceinline__ void multiply(sums<TILES> &sum, const words &w, int u, int,
                                             const COLUMNS &columns, const struct packed_input &,
                                             int) const {
#pragma unroll
        for (int pair = 0; pair < 4; pair++)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                uint4 b = columns.get(u, pair, tile);
                const uint4 &v = w.step[2 * pair], &v2 = w.step[2 * pair + 1];
                const uint32_t a[4] = {v.x, v.y, v.z, v.w}, a2[4] = {v2.x, v2.y, v2.z, v2.w};
                mma(sum.v + tile * 4, a, b.x, b.y);
                mma(sum.v + tile * 4, a2, b.z, b.w);
            }
    }

    static __device__ __forceinline__ void fold(float out[FOLDS], const float *v, int corner) {
        out[0] = v[corner];
    }
    static __device__ __forceinline__ float factor(const struct product &, int, int) { return 1; }
    static __device__ __forceinline__ float merge(float total, float, float v) { return total + v; }
};

#endif
