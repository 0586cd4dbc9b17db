/* wide.cuh - products of many tokens on Hopper: a warp group's mma(), columns by bulk copies.
 *
 * Owns      nothing.
 * Borrows   see product.h.
 * Thread    a kernel's.
 * Fails     traps where the instructions are missing; the launch is for sm_90a alone.
 * Cost      a block has 128 rows by W tokens: two groups of 4 warps with 64 rows each expand weights in
 *           registers while the other's products run; a warp of a third keeps a ring of columns filled,
 *           and gives its group's registers to those that multiply.
 *
 * Bits are those of the other launches: group_mma() adds the 16 products of a step as mma() does
 * (checked on an H200), parts are cut and merged alike. A part's sums are merged into totals in
 * shared memory, for registers hold the sums of levels and of offsets.
 *
 * Columns lie as packed_input.wide says: (chunks, 8 steps, 2 halves of the step, n_cols) of 8 inputs. */
#ifndef KERNELS_CUDA_WIDE_CUH
#define KERNELS_CUDA_WIDE_CUH

#include "kernels/cuda/hopper.h"
#include "kernels/cuda/pack_input.h"
#include "kernels/cuda/product.cuh"

enum {
    WIDE_GROUPS = 2,                  /* of 4 warps */
    WIDE_WORKERS = WIDE_GROUPS * 128, /* threads that multiply */
    WIDE_THREADS = WIDE_WORKERS + 128,
    WIDE_SLABS = 8,    /* of W times 16 bytes in a stage: 4 steps */
    WIDE_SUM_SLABS = 4 /* sums of groups, a stage of their own behind a unit's others */
};

/* What a block has in shared memory. Stages are many and small: two are always in use by products that
 * run, and the others must cover the way from the second cache. */
template <int W> struct wide_room {
    enum { STAGES = W > 64 ? 9 : 12, STAGE = WIDE_SLABS * W };
    uint4 *stages;        /* (STAGES, slabs, W) */
    float *kept;          /* (W / 2 + 4, WIDE_WORKERS) */
    phase_barrier *full;  /* (STAGES) one arrival, and bytes */
    phase_barrier *empty; /* (STAGES) an arrival of each group */
    static constexpr size_t bytes() {
        return (size_t)STAGES * STAGE * sizeof(uint4) + (size_t)(W / 2 + 4) * WIDE_WORKERS * 4;
    }
};

/* Where a walk through the ring stands. */
template <int STAGES> struct wide_walk {
    int stage, parity;
    __device__ __forceinline__ void step() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

#if HAVE_HOPPER
/* Fills a stage with slabs from `from` on, a lane for each. */
template <int W>
static __device__ __forceinline__ void wide_fill(const wide_room<W> &room, const uint4 *from,
                                                 size_t pitch, int slabs,
                                                 wide_walk<wide_room<W>::STAGES> &walk) {
    int lane = (int)threadIdx.x % 32;
    phase_barrier *full = room.full + walk.stage;
    phase_wait(room.empty + walk.stage, walk.parity);
    if (lane == 0) phase_expect(full, (unsigned)(slabs * W * (int)sizeof(uint4)));
    warp_sync();
    if (lane < slabs)
        copy_bulk(room.stages + (size_t)walk.stage * wide_room<W>::STAGE + lane * W,
                  from + (size_t)lane * pitch, W * sizeof(uint4), full);
    walk.step();
}

template <class FORM, int W>
static __device__ __forceinline__ void wide_bring(const struct product_set &set,
                                                  const wide_room<W> &room, int first) {
    size_t pitch = (size_t)set.x.n_cols;
    const uint4 *columns = set.x.columns + first, *sums = set.x.group_cols + first;
    wide_walk<wide_room<W>::STAGES> walk = {0, 1}; /* the first waits find an empty ring */
    for (int u = 0; u < FORM::units(set.cols); u++) {
        for (int i = 0; i < 2 * FORM::CHUNKS; i++, columns += WIDE_SLABS * pitch)
            wide_fill<W>(room, columns, pitch, WIDE_SLABS, walk);
        if (!FORM::OFFSETS) continue;
        wide_fill<W>(room, sums, pitch, WIDE_SUM_SLABS, walk);
        sums += WIDE_SUM_SLABS * pitch;
    }
}

/* What a thread keeps in shared memory: totals, and the factors of its rows g and g + 8. Registers have
 * no room for them, and a load from memory at the end of each part would be waited for. */
template <class FORM, int W> struct wide_kept {
    float *own; /* (W / 2 + 4, WIDE_WORKERS) */
    __device__ __forceinline__ float *total(int i) const { return own + i * WIDE_WORKERS; }
    __device__ __forceinline__ float *factor(int high, int fold) const {
        return own + (W / 2 + 2 * high + fold) * WIDE_WORKERS;
    }
    __device__ __forceinline__ void start(const struct product &p, int row0) const {
#pragma unroll
        for (int i = 0; i < W / 2; i++) *total(i) = 0;
#pragma unroll
        for (int i = 0; i < 2 * FORM::FOLDS; i++) {
            int high = i / FORM::FOLDS, row = row0 + 8 * high;
            *factor(high, i % FORM::FOLDS) =
                FORM::factor(p, row < p.rows ? row : 0, i % FORM::FOLDS);
        }
    }
    /* A part's sums into the totals, which they leave at zero. */
    __device__ __forceinline__ void merge(float *sum, float *offset) const {
        float f[2][2];
#pragma unroll
        for (int i = 0; i < 2 * FORM::FOLDS; i++)
            f[i / FORM::FOLDS][i % FORM::FOLDS] = *factor(i / FORM::FOLDS, i % FORM::FOLDS);
#pragma unroll
        for (int i = 0; i < W / 2; i++) {
            int high = i % 4 / 2;
            float v = FORM::merge(*total(i), f[high][0], sum[i]);
            sum[i] = 0;
            if (FORM::OFFSETS) {
                v = FORM::merge(v, f[high][1], offset[i]);
                offset[i] = 0;
            }
            *total(i) = v;
            if (i % 8 == 7) keep_order(); /* loads ahead would take registers */
        }
    }
};

/* Stages whose products run: they are given back when the next have started and these are done. */
struct wide_held {
    phase_barrier *empty[2];
    __device__ __forceinline__ void give_back() {
        if (threadIdx.x % 128) return;
        if (empty[0]) phase_arrive(empty[0]);
        if (empty[1]) phase_arrive(empty[1]);
    }
};

/* The products of half a chunk, 4 steps, of a warp group. The A sides are expanded while the products
 * before run, which are done when this returns. */
template <class FORM, int W>
static __device__ __forceinline__ void
wide_half(float *sum, float *offset, uint32_t side[2][2][4], const FORM &form,
          const typename FORM::words &words, int c, int half, const wide_room<W> &room,
          wide_walk<wide_room<W>::STAGES> &walk, wide_held &held) {
    const uint4 *stage = room.stages + (size_t)walk.stage * wide_room<W>::STAGE;
    const uint4 *sums = NULL;
    bool last = FORM::OFFSETS && c == 1 && half == 1;
    uint32_t offsets[4];
    wide_held mine = {{room.empty + walk.stage, NULL}};
#pragma unroll
    for (int i = 0; i < 2; i++) form.sides(side[i], words, c, 2 * half + i);
    if (last) form.offset_sides(offsets, words);
    phase_wait(room.full + walk.stage, walk.parity);
    walk.step();
    if (last) {
        sums = room.stages + (size_t)walk.stage * wide_room<W>::STAGE;
        mine.empty[1] = room.empty + walk.stage;
        phase_wait(room.full + walk.stage, walk.parity);
        walk.step();
    }
    group_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) GROUP_MMA(W, sum, side[i / 2][i % 2], b_side(stage + i * 2 * W, W));
    if (last) {
        GROUP_MMA(W, offset, offsets, b_side(sums, W));
        GROUP_MMA(W, offset, offsets, b_side(sums + 2 * W, W));
    }
    group_commit();
    group_wait<1>();
    held.give_back();
    held = mine;
}

template <class FORM, int W>
static __device__ __forceinline__ void
wide_multiply(const struct product_set &set, const struct product &p, const wide_room<W> &room,
              int block_tile, int first) {
    typedef wide_room<W> layout;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int tile = block_tile + warp, row0 = tile * TILE_ROWS + lane / 4;
    int units = FORM::units(set.cols), part = 0;
    bool works = tile * TILE_ROWS < p.rows;
    wide_kept<FORM, W> kept = {room.kept + threadIdx.x};
    float sum[W / 2], offset[FORM::OFFSETS ? W / 2 : 1];
    uint32_t a[2][2][2][4]; /* sides of both halves of a chunk */
    FORM form;
    typename FORM::words next;
    form.start(set, p, works ? tile : 0, lane);
    form.load(next, 0);
    kept.start(p, row0);
    kernel_begin();
#pragma unroll
    for (int i = 0; i < W / 2; i++) {
        sum[i] = 0;
        if (FORM::OFFSETS) offset[i] = 0;
    }
    wide_walk<layout::STAGES> walk = {0, 0};
    wide_held held = {{NULL, NULL}};
    for (int u = 0; u < units; u++) {
        typename FORM::words words = next;
        if (u == part_begin(units, part + 1)) {
            group_wait<0>();
            for (; u == part_begin(units, part + 1); part++) kept.merge(sum, offset);
        }
        if (u + 1 < units) form.load(next, u + 1);
#pragma unroll
        for (int c = 0; c < FORM::CHUNKS; c++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                wide_half<FORM, W>(sum, offset, a[half], form, words, c, half, room, walk, held);
    }
    group_wait<0>();
    for (; part < PARTS; part++) kept.merge(sum, offset);
#pragma unroll
    for (int i = 0; i < W / 2; i++) {
        int token = first + i / 4 * TILE_COLS + lane % 4 * 2 + i % 2, row = row0 + 8 * (i % 4 / 2);
        if (works && row < p.rows && token < set.x.n_tokens)
            put(p, set.x.n_tokens, row, token, *kept.total(i) * set.x.unscale[token]);
    }
}
#endif

template <class FORM, int W>
__global__ void __launch_bounds__(WIDE_THREADS, 1) wide_tokens(const struct product_set set) {
#if HAVE_HOPPER
    typedef wide_room<W> layout;
    SHARED_DYNAMIC(uint4, shared);
    SHARED_ARRAY(phase_barrier, barriers, 2 * layout::STAGES);
    layout room = {shared, reinterpret_cast<float *>(shared + layout::STAGES * layout::STAGE),
                   barriers, barriers + layout::STAGES};
    const struct product &p = set.each[matrix_of(set, (int)blockIdx.x)];
    int first = (int)blockIdx.y * W;
    if (threadIdx.x == 0) {
        for (int i = 0; i < layout::STAGES; i++) {
            phase_init(room.full + i, 1);
            phase_init(room.empty + i, WIDE_GROUPS);
        }
        phase_inits_done();
    }
    block_sync();
    if (threadIdx.x < WIDE_WORKERS) {
        registers_more<240>();
        wide_multiply<FORM, W>(set, p, room, ((int)blockIdx.x - p.first_block) * 4 * WIDE_GROUPS,
                               first);
    } else {
        registers_less<24>();
        kernel_begin();
        if (threadIdx.x < WIDE_WORKERS + 32) wide_bring<FORM, W>(set, room, first);
    }
#else
    __trap();
#endif
}

template <class FORM, int W>
static cudaError_t wide_start(int blocks, struct product_set *set, cudaStream_t stream) {
    dim3 grid((unsigned)blocks, (unsigned)((set->x.n_tokens + W - 1) / W));
    return gpu_launch(wide_tokens<FORM, W>, grid, WIDE_THREADS, wide_room<W>::bytes(), stream,
                      *set);
}

template <class FORM> static cudaError_t wide_launch(struct product_set *set, cudaStream_t stream) {
    int blocks = 0;
    for (int i = 0; i < set->n; i++) {
        set->each[i].first_block = blocks;
        blocks += (set->each[i].rows + WIDE_BLOCK_ROWS - 1) / WIDE_BLOCK_ROWS;
    }
    switch (set->width) {
    case 32:
        return wide_start<FORM, 32>(blocks, set, stream);
    case 64:
        return wide_start<FORM, 64>(blocks, set, stream);
    default:
        return wide_start<FORM, 128>(blocks, set, stream);
    }
}

#endif
