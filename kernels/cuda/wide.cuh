/* wide.cuh - the kernels behind wide.h.
 *
 * Owns      nothing.
 * Borrows   see product.h.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      see wide.h.
 *
 * A form supplies, beside what product.cuh says: COPIED, whether its weights are halves already, else
 * tables_of(), expand(), load_betas() and expand_betas().
 *
 * The inputs of a part pass in stages of 64, then, where the form has betas, the sums of its groups in
 * stages of four units; the accumulators are folded into totals between the two. */
#ifndef KERNELS_CUDA_WIDE_CUH
#define KERNELS_CUDA_WIDE_CUH

#include "kernels/cuda/product.cuh"
#include "kernels/cuda/wide.h"

enum {
    WIDE_TILES = 8, /* row tiles of a block, one expanded by each warp */
    WIDE_PAIRS = 2, /* pairs of steps in a stage */
    WIDE_UNITS = 4, /* units whose betas make a stage */
    WIDE_STAGE_A = WIDE_TILES * WIDE_PAIRS * 2 * 32 /* uint4 */
};

/* Where a block is in its inputs. */
template <class FORM> struct wide_place {
    enum { SUBS = 2 * FORM::CHUNKS }; /* stages in a unit; sub of SUBS: betas from unit u on */
    int units, part, end, u, sub;

    __device__ __forceinline__ int first(int q) const { return units * q / PARTS; }
    __device__ __forceinline__ bool works() const { return part < end; }
    __device__ __forceinline__ bool of_betas() const { return FORM::FOLDS > 1 && sub == SUBS; }
    __device__ __forceinline__ int left() const { return first(part + 1) - u; } /* units */
    /* To the first part from q on that has inputs. */
    __device__ __forceinline__ void enter(int q) {
        while (q < end && first(q) == first(q + 1)) q++;
        part = q;
        u = first(q);
        sub = 0;
    }
    __device__ __forceinline__ void advance() {
        if (of_betas()) {
            u += WIDE_UNITS;
            if (left() <= 0) enter(part + 1);
        } else if (++sub == SUBS) {
            sub = 0;
            if (++u < first(part + 1)) return;
            if (FORM::FOLDS > 1) {
                sub = SUBS;
                u = first(part);
            } else {
                enter(part + 1);
            }
        }
    }
};

/* Brings a stage's columns, and its weights where they are halves already. */
template <class FORM, int COLS>
static __device__ __forceinline__ void wide_bring(const wide_place<FORM> &at, uint4 *b, uint4 *a,
                                                  const struct packed_input &x, int first,
                                                  const FORM &form) {
    int thread = (int)threadIdx.x;
    size_t n_cols = (size_t)x.n_cols;
    if (at.of_betas()) {
        uint2 *to = reinterpret_cast<uint2 *>(b);
        for (int i = thread; i < WIDE_PAIRS * COLS * 8; i += WARPS * 32) {
            int j = i / 2, pair = j / (COLS * 4), lane = j % (COLS * 4), step = 2 * pair + i % 2;
            bool have = step < at.left() && first + lane / 4 < x.n_cols;
            size_t from = have ? ((size_t)(at.u + step) * n_cols + (size_t)first) * 4 + lane : 0;
            copy_async(to + i, x.group_cols + from, have);
        }
        return;
    }
    int pair0 = (at.u * FORM::CHUNKS + at.sub / 2) * 4 + at.sub % 2 * 2;
#pragma unroll
    for (int i = thread; i < WIDE_PAIRS * COLS * 4; i += WARPS * 32) {
        int pair = i / (COLS * 4), lane = i % (COLS * 4);
        bool have = first + lane / 4 < x.n_cols;
        size_t from = have ? ((size_t)(pair0 + pair) * n_cols + (size_t)first) * 4 + lane : 0;
        copy_async(b + i, x.columns + from, have);
    }
    if constexpr (FORM::COPIED) {
#pragma unroll
        for (int step = 0; step < 2 * WIDE_PAIRS; step++)
            copy_async(a + (thread / 32 * 2 * WIDE_PAIRS + step) * 32 + thread % 32,
                       form.step_of(at.u, at.sub % 2 * 4 + step), true);
    }
}

/* Loads what the stage's expansion needs, unless the stage before has left it. */
template <class FORM>
static __device__ __forceinline__ void wide_fetch(typename FORM::words &w,
                                                  const wide_place<FORM> &at, const FORM &form) {
    if constexpr (!FORM::COPIED) {
        if (!at.works()) return;
        if (at.of_betas()) {
#pragma unroll
            for (int i = 0; i < WIDE_UNITS; i++) {
                uint2 p = {0, 0};
                if (i < at.left()) p = form.load_betas(at.u + i);
                w.codes[2 * i] = p.x;
                w.codes[2 * i + 1] = p.y;
            }
        } else if (at.sub == 0) {
            form.load(w, at.u);
        }
    }
}

template <class FORM, int SUB>
static __device__ __forceinline__ void wide_expand_sub(uint4 *to, const typename FORM::words &w,
                                                       const FORM &form) {
    typename FORM::group_tables tables;
    form.tables_of(tables, w, SUB / 2, SUB % 2);
#pragma unroll
    for (int n = 0; n < 2; n++) {
        uint32_t a[2][4];
        form.expand(a, w, tables, SUB / 2, SUB % 2 * 2 + n);
#pragma unroll
        for (int step = 0; step < 2; step++)
            to[(2 * n + step) * 32] = uint4{a[step][0], a[step][1], a[step][2], a[step][3]};
    }
}

/* A stage's weights of one row tile as halves into shared memory. to: this lane's. */
template <class FORM>
static __device__ __forceinline__ void wide_expand(uint4 *to, const typename FORM::words &w,
                                                   const wide_place<FORM> &at, const FORM &form) {
    if constexpr (!FORM::COPIED) {
        if (at.of_betas()) {
#pragma unroll
            for (int i = 0; i < WIDE_UNITS; i++) {
                uint32_t a[4] = {0, 0, 0, 0};
                if (i < at.left()) FORM::expand_betas(a, w.codes[2 * i], w.codes[2 * i + 1]);
                to[i * 32] = uint4{a[0], a[1], a[2], a[3]};
            }
            return;
        }
        switch (at.sub) {
        case 0:
            wide_expand_sub<FORM, 0>(to, w, form);
            break;
        case 1:
            wide_expand_sub<FORM, 1>(to, w, form);
            break;
        case 2:
            wide_expand_sub<FORM, 2>(to, w, form);
            break;
        default:
            wide_expand_sub<FORM, 3>(to, w, form);
        }
    }
}

/* What a block leaves: totals of a thread's own in shared memory, or sums of each part. */
struct wide_result {
    const struct product *p;
    float *totals;  /* (values, threads) */
    float *partial; /* (parts, folds, tokens, rows); NULL without splits */
    int row0, token0, n_tokens;
};

/* Adds a part's accumulators, 4 row tiles by COLS / 32 tiles of columns, to the result. */
template <class FORM, int TILES>
static __device__ __forceinline__ void wide_fold(const struct wide_result &to, int part, int fold,
                                                 float (*acc)[TILES][4]) {
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int high = 0; high < 2; high++) {
            int row = to.row0 + 16 * r + 8 * high, rows = to.p->rows;
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                float v = acc[r][t][2 * high] + acc[r][t][2 * high + 1];
                int token = to.token0 + 4 * t;
                if (!to.partial) {
                    float *total =
                        to.totals + ((r * 2 + high) * TILES + t) * (WARPS * 32) + threadIdx.x;
                    *total = FORM::merge(*total, *to.p, row < rows ? row : 0, fold, v);
                } else if (row < rows && token < to.n_tokens) {
                    size_t line = (size_t)(part * FORM::FOLDS + fold) * (size_t)to.n_tokens;
                    to.partial[(line + (size_t)token) * (size_t)rows + (size_t)row] = v;
                }
                acc[r][t][2 * high] = acc[r][t][2 * high + 1] = 0;
            }
        }
}

/* acc += a stage. */
template <int COLS, int TILES>
static __device__ __forceinline__ void wide_multiply(float (*acc)[TILES][4], const uint4 *a,
                                                     const uint4 *b, int n_pairs) {
    for (int pair = 0; pair < n_pairs; pair++) {
        uint32_t w[4][2][4];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint4 v = a[(i / 2 * 2 * WIDE_PAIRS + 2 * pair + i % 2) * 32];
            w[i / 2][i % 2][0] = v.x;
            w[i / 2][i % 2][1] = v.y;
            w[i / 2][i % 2][2] = v.z;
            w[i / 2][i % 2][3] = v.w;
        }
        /* Two tiles at a time: eight products between two that wait for each other. */
#pragma unroll
        for (int t = 0; t < TILES; t += 2) {
            uint4 v[2];
#pragma unroll
            for (int i = 0; i < 2; i++) v[i] = b[(pair * COLS + (t + i) * TILE_COLS) * 4];
#pragma unroll
            for (int i = 0; i < 8; i++)
                mma(acc[i % 4][t + i / 4], w[i % 4][0], v[i / 4].x, v[i / 4].y);
#pragma unroll
            for (int i = 0; i < 8; i++)
                mma(acc[i % 4][t + i / 4], w[i % 4][1], v[i / 4].z, v[i / 4].w);
        }
    }
}

/* blockIdx: 128 rows of a matrix of the set, COLS columns, a share of the parts. */
template <class FORM, int COLS>
__global__ void __launch_bounds__(WARPS * 32, 1)
    wide_tokens(const struct product_set set, const struct product_plan plan) {
    constexpr int TILES = COLS / 4 / TILE_COLS, STAGE_B = WIDE_PAIRS * COLS * 4;
    SHARED_DYNAMIC(uint4, shared);
    uint4 *ring_b = shared, *ring_a = shared + plan.stages * STAGE_B;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int which = matrix_of(set, (int)blockIdx.x);
    const struct product &p = set.each[which];
    int tile0 = ((int)blockIdx.x - p.first_block) * WIDE_TILES, first = (int)blockIdx.y * COLS;
    int mine = (tile0 + warp) * TILE_ROWS < p.rows ? tile0 + warp : 0; /* the tile to expand */
    int across = warp % 4, down = warp / 4; /* COLS / 4 columns, 4 row tiles */
    int parts_each = PARTS / plan.splits;

    struct wide_result result = {&p,
                                 reinterpret_cast<float *>(ring_a + plan.stages * WIDE_STAGE_A),
                                 plan.partial,
                                 (tile0 + 4 * down) * TILE_ROWS + lane / 4,
                                 (first + across * (COLS / 4)) / 2 + lane % 4,
                                 set.x.n_tokens};
    if (plan.partial)
        for (int i = 0; i < which; i++)
            result.partial +=
                (size_t)set.each[i].rows * (size_t)set.x.n_tokens * (size_t)(PARTS * FORM::FOLDS);
    else
        for (int i = 0; i < 8 * TILES; i++) result.totals[i * (WARPS * 32) + threadIdx.x] = 0;

    FORM form(set, p, mine, lane);
    typename FORM::words w;
    wide_place<FORM> now;
    now.units = FORM::units(set.cols);
    now.end = parts_each * ((int)blockIdx.z + 1);
    now.enter(parts_each * (int)blockIdx.z);
    wide_fetch(w, now, form);
    kernel_begin();

    wide_place<FORM> far = now;
    for (int s = 0; s < plan.stages - 1; s++) {
        if (far.works()) {
            wide_bring<FORM, COLS>(far, ring_b + s * STAGE_B, ring_a + s * WIDE_STAGE_A, set.x,
                                   first, form);
            far.advance();
        }
        copy_commit();
    }
    float acc[4][TILES][4];
#pragma unroll
    for (int i = 0; i < 16 * TILES; i++) acc[i / (4 * TILES)][i / 4 % TILES][i % 4] = 0;
    int slot = 0, slot_far = plan.stages - 1, own_a = warp * 2 * WIDE_PAIRS * 32 + lane;
    if (now.works()) {
        wide_expand(ring_a + own_a, w, now, form);
        wide_place<FORM> next = now;
        next.advance();
        wide_fetch(w, next, form);
    }
    while (now.works()) {
        wide_place<FORM> next = now;
        next.advance();
        copy_wait(plan.stages - 2);
        block_sync(); /* this stage has come; the slot of the one before is free */
        if (far.works()) {
            wide_bring<FORM, COLS>(far, ring_b + slot_far * STAGE_B,
                                   ring_a + slot_far * WIDE_STAGE_A, set.x, first, form);
            far.advance();
        }
        copy_commit();
        int slot_next = slot + 1 == plan.stages ? 0 : slot + 1;
        /* Half of the warps expand while the others multiply. */
#pragma unroll 1
        for (int turn = 0; turn < 2; turn++) {
            if ((turn == 0) == (warp < WARPS / 2)) {
                if (!FORM::COPIED && next.works()) {
                    wide_expand(ring_a + slot_next * WIDE_STAGE_A + own_a, w, next, form);
                    wide_place<FORM> later = next;
                    later.advance();
                    wide_fetch(w, later, form);
                }
            } else {
                int n_pairs = WIDE_PAIRS;
                if (now.of_betas() && now.left() <= 2) n_pairs = 1;
                wide_multiply<COLS, TILES>(
                    acc, ring_a + slot * WIDE_STAGE_A + down * 4 * 2 * WIDE_PAIRS * 32 + lane,
                    ring_b + slot * STAGE_B + across * COLS + lane, n_pairs);
            }
        }
        bool part_ends = next.part != now.part;
        if (now.of_betas()) {
            if (part_ends) wide_fold<FORM, TILES>(result, now.part, 1, acc);
        } else if (part_ends || next.of_betas()) {
            wide_fold<FORM, TILES>(result, now.part, 0, acc);
        }
        slot_far = slot;
        slot = slot_next;
        now = next;
    }
    copy_wait(0);
    if (plan.partial) return;
#pragma unroll
    for (int i = 0; i < 8 * TILES; i++) {
        int row = result.row0 + 8 * (i / TILES), token = result.token0 + 4 * (i % TILES);
        if (row < p.rows && token < set.x.n_tokens)
            put(p, set.x.n_tokens, row, token,
                result.totals[i * (WARPS * 32) + threadIdx.x] * set.x.unscale[token]);
    }
}

/* Adds the parts' sums of matrix z, one thread a row, one block a token. */
template <class FORM>
__global__ void __launch_bounds__(WARPS * 32)
    wide_merge(const struct product_set set, const struct product_plan plan) {
    kernel_begin();
    int which = (int)blockIdx.z, n = set.x.n_tokens, units = FORM::units(set.cols);
    const struct product &p = set.each[which];
    int row = (int)blockIdx.x * (WARPS * 32) + (int)threadIdx.x, token = (int)blockIdx.y;
    if (row >= p.rows) return;
    const float *from = plan.partial;
    for (int i = 0; i < which; i++)
        from += (size_t)set.each[i].rows * (size_t)n * (size_t)(PARTS * FORM::FOLDS);
    float total = 0;
#pragma unroll
    for (int q = 0; q < PARTS; q++) {
        if (units * q / PARTS == units * (q + 1) / PARTS) continue; /* nobody wrote there */
#pragma unroll
        for (int f = 0; f < FORM::FOLDS; f++) {
            size_t line = (size_t)(q * FORM::FOLDS + f) * (size_t)n + (size_t)token;
            total = FORM::merge(total, p, row, f, from[line * (size_t)p.rows + (size_t)row]);
        }
    }
    put(p, n, row, token, total * set.x.unscale[token]);
}

template <class FORM, int COLS>
static cudaError_t wide_launch_cols(struct product_set *set, const struct product_plan *plan,
                                    int blocks, cudaStream_t stream) {
    size_t shared = wide_shared(COLS, plan->stages);
    dim3 grid((unsigned)blocks, (unsigned)((set->x.n_cols + COLS - 1) / COLS),
              (unsigned)plan->splits);
    return gpu_launch(wide_tokens<FORM, COLS>, grid, WARPS * 32, shared, stream, *set, *plan);
}

template <class FORM>
static cudaError_t wide_launch(struct product_set *set, const struct product_plan *plan,
                               cudaStream_t stream) {
    int blocks = 0, most = 0;
    for (int i = 0; i < set->n; i++) {
        set->each[i].first_block = blocks;
        blocks += (tiles_of(set->each[i].rows) + WIDE_TILES - 1) / WIDE_TILES;
        if (set->each[i].rows > most) most = set->each[i].rows;
    }
    cudaError_t rc = plan->cols == 64    ? wide_launch_cols<FORM, 64>(set, plan, blocks, stream)
                     : plan->cols == 128 ? wide_launch_cols<FORM, 128>(set, plan, blocks, stream)
                                         : wide_launch_cols<FORM, 256>(set, plan, blocks, stream);
    if (rc != cudaSuccess || !plan->partial) return rc;
    dim3 grid((unsigned)((most + WARPS * 32 - 1) / (WARPS * 32)), (unsigned)set->x.n_tokens,
              (unsigned)set->n);
    return gpu_launch(wide_merge<FORM>, grid, WARPS * 32, 0, stream, *set, *plan);
}

#endif
