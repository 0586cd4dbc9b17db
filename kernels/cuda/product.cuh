/* product.cuh - the two shapes of launch that every form of weight shares.
 *
 * Owns      nothing.
 * Borrows   see product.h.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      few tokens: each weight is read once, each warp of a block takes one part of the
 *           inputs of the same 16 rows. Many tokens: each warp takes 16 rows and all inputs; a
 *           block's 8 warps share the columns in shared memory.
 *
 * A form supplies: CHUNKS in a unit, MANY tiles of columns for a warp with many tokens, load() of a
 * lane's words, multiply() of a unit into sums, fold() of a part's sums into FOLDS numbers for a row
 * and token, and merge() of these numbers into the total, part after part. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/product.h"
#include "kernels/cuda/ptx.h"

enum { WARPS = PARTS };

static __device__ __forceinline__ float activate(float v, int act) {
    if (act == 1) return v < 0 ? 0 : v;
    if (act == 2) {
        float u = 0.79788456080286536f * (v + 0.044715f * v * v * v);
        return v / (1 + expf(-2 * u));
    }
    return v;
}

static __device__ __forceinline__ void put(const struct product &p, int n_tokens, int row,
                                           int token, float v) {
    if (row >= p.rows || token >= n_tokens) return;
    float *to = p.dst + (size_t)token * (size_t)p.rows + row;
    if (p.bias) v += p.bias[row];
    v = activate(v, p.act);
    *to = p.accumulate ? *to + v : v;
}

/* Which matrix of the set a block works for. */
static __device__ __forceinline__ int matrix_of(const struct product_set &set, int block) {
    int i = 0;
    while (i + 1 < set.n && block >= set.each[i + 1].first_block) i++;
    return i;
}

/* Columns straight from memory: for few tokens, whose columns stay in the first cache. */
struct columns_in_memory {
    const struct packed_input &x;
    int first, used; /* column of this tile, columns that are not padding */
    int g, t;
    __device__ __forceinline__ uint4 get(int chunk, int pair, int tile) const {
        int col = first + tile * TILE_COLS + g;
        if (col >= used) return uint4{0, 0, 0, 0};
        return __ldg(x.columns + ((size_t)(chunk * 4 + pair) * (size_t)x.n_cols + (size_t)col) * 4 +
                     t);
    }
};

/* Columns of one chunk that the block has brought into shared memory. */
template <int TILES> struct columns_in_shared {
    const uint4 *chunk; /* (4 pairs, TILES * TILE_COLS, 4 lanes) */
    int g, t;
    __device__ __forceinline__ uint4 get(int, int pair, int tile) const {
        return chunk[(pair * TILES * TILE_COLS + tile * TILE_COLS + g) * 4 + t];
    }
};

template <class FORM, int TILES>
__global__ void __launch_bounds__(WARPS * 32) few_tokens(const struct product_set set) {
    SHARED_ARRAY(float, parts, PARTS *TILES * 2 * FORM::FOLDS * 32);
    const struct product &p = set.each[matrix_of(set, (int)blockIdx.x)];
    int part = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int tile = (int)blockIdx.x - p.first_block, units = FORM::units(set.cols);
    int u0 = units * part / PARTS, u1 = units * (part + 1) / PARTS;
    columns_in_memory columns{set.x, 0, 2 * set.x.n_tokens, lane / 4, lane % 4};
    typename FORM::template sums<TILES> sum;
    FORM form(set, p, tile, lane);
    typename FORM::words next;
    if (u0 < u1) form.load(next, u0); /* weights do not wait for the kernel before */
    kernel_begin();
    sum.clear();
    for (int u = u0; u < u1; u++) {
        typename FORM::words now = next;
        if (u + 1 < u1) form.load(next, u + 1);
        form.begin(u, 0);
#pragma unroll
        for (int c = 0; c < FORM::CHUNKS; c++)
            form.template multiply<TILES>(sum, now, u, c, columns, set.x, 0);
    }
    constexpr int EACH = FORM::template sums<1>::N, FOLDS = FORM::FOLDS;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int high = 0; high < 2; high++) {
            float out[FOLDS];
            FORM::fold(out, sum.v + t * EACH, high);
#pragma unroll
            for (int i = 0; i < FOLDS; i++)
                parts[(((part * TILES + t) * 2 + high) * FOLDS + i) * 32 + lane] = out[i];
        }
    block_sync();
    for (int i = part; i < 2 * TILES; i += WARPS) {
        int high = i % 2, token = 4 * (i / 2) + lane % 4;
        int row = tile * TILE_ROWS + lane / 4 + 8 * high;
        if (row >= p.rows || token >= set.x.n_tokens) continue;
        float total = 0;
#pragma unroll
        for (int q = 0; q < PARTS; q++)
#pragma unroll
            for (int f = 0; f < FOLDS; f++)
                total = FORM::merge(total, p, row, f,
                                    parts[((q * TILES * 2 + i) * FOLDS + f) * 32 + lane]);
        put(p, set.x.n_tokens, row, token, total * set.x.unscale[token]);
    }
}

/* A part's sums into totals; rows past the matrix merge as row 0 and are dropped. */
template <class FORM, int TILES>
static __device__ __forceinline__ void merge_part(float *total, const float *v,
                                                  const struct product &p, int row0) {
    constexpr int EACH = FORM::template sums<1>::N;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int high = 0; high < 2; high++) {
            float out[FORM::FOLDS];
            int row = row0 + 8 * high;
            FORM::fold(out, v + t * EACH, high);
#pragma unroll
            for (int i = 0; i < FORM::FOLDS; i++)
                total[2 * t + high] =
                    FORM::merge(total[2 * t + high], p, row < p.rows ? row : 0, i, out[i]);
        }
}

template <class FORM>
__global__ void __launch_bounds__(WARPS * 32) many_tokens(const struct product_set set) {
    enum { MANY_TILES = FORM::MANY };
    SHARED_ARRAY(uint4, shared, 4 * MANY_TILES * TILE_COLS * 4);
    const struct product &p = set.each[matrix_of(set, (int)blockIdx.x)];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int tile = ((int)blockIdx.x - p.first_block) * WARPS + warp, units = FORM::units(set.cols);
    int first = (int)blockIdx.y * MANY_TILES * TILE_COLS;
    bool works = tile * TILE_ROWS < p.rows;
    int row0 = tile * TILE_ROWS + lane / 4;
    columns_in_shared<MANY_TILES> columns{shared, lane / 4, lane % 4};
    typename FORM::template sums<MANY_TILES> sum;
    float total[MANY_TILES * 2]; /* rows g and g + 8 */
    FORM form(set, p, works ? tile : 0, lane);
    typename FORM::words now;
    kernel_begin();
    sum.clear();
#pragma unroll
    for (int i = 0; i < MANY_TILES * 2; i++) total[i] = 0;
    int part = 0;
    for (int u = 0; u < units; u++) {
        while (u == units * (part + 1) / PARTS) {
            merge_part<FORM, MANY_TILES>(total, sum.v, p, row0);
            sum.clear();
            part++;
        }
        form.load(now, u);
        form.begin(u, first / 2);
#pragma unroll
        for (int c = 0; c < FORM::CHUNKS; c++) {
            int chunk = u * FORM::CHUNKS + c;
            block_sync();
            for (int i = (int)threadIdx.x; i < 4 * MANY_TILES * TILE_COLS * 4; i += WARPS * 32) {
                int pair = i / (MANY_TILES * TILE_COLS * 4), at = i % (MANY_TILES * TILE_COLS * 4);
                uint4 v = {0, 0, 0, 0};
                if (first + at / 4 < set.x.n_cols)
                    v = __ldg(set.x.columns +
                              ((size_t)(chunk * 4 + pair) * (size_t)set.x.n_cols + (size_t)first) *
                                  4 +
                              at);
                shared[i] = v;
            }
            block_sync();
            form.template multiply<MANY_TILES>(sum, now, u, c, columns, set.x, first);
        }
    }
    for (; part < PARTS; part++) {
        merge_part<FORM, MANY_TILES>(total, sum.v, p, row0);
        sum.clear();
    }
#pragma unroll
    for (int t = 0; t < MANY_TILES; t++)
#pragma unroll
        for (int high = 0; high < 2; high++) {
            int token = first / 2 + 4 * t + lane % 4, row = row0 + 8 * high;
            if (works && row < p.rows && token < set.x.n_tokens)
                put(p, set.x.n_tokens, row, token, total[2 * t + high] * set.x.unscale[token]);
        }
}

/* Sums of one part as a plain array, EACH floats for a tile of columns. */
template <int EACH, int TILES> struct part_sums {
    enum { N = EACH * TILES };
    float v[N];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = 0;
    }
};

template <class FORM>
static cudaError_t product_launch(struct product_set *set, cudaStream_t stream) {
    int n = set->x.n_tokens, blocks = 0, per_block = n <= FEW_TOKENS ? 1 : WARPS;
    for (int i = 0; i < set->n; i++) {
        set->each[i].first_block = blocks;
        blocks += (tiles_of(set->each[i].rows) + per_block - 1) / per_block;
    }
    dim3 grid((unsigned)blocks);
    if (n <= 4) return gpu_launch(few_tokens<FORM, 1>, grid, WARPS * 32, 0, stream, *set);
    if (n <= 8) return gpu_launch(few_tokens<FORM, 2>, grid, WARPS * 32, 0, stream, *set);
    if (n <= FEW_TOKENS) return gpu_launch(few_tokens<FORM, 4>, grid, WARPS * 32, 0, stream, *set);
    grid.y = (unsigned)((n + 4 * FORM::MANY - 1) / (4 * FORM::MANY));
    return gpu_launch(many_tokens<FORM>, grid, WARPS * 32, 0, stream, *set);
}

#endif
