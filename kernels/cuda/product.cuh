/* product.cuh - the two shapes of launch that every form of weight shares.
 *
 * Owns      nothing.
 * Borrows   see product.h.
 * Thread    a kernel's.
 * Fails     never.
 * Cost      few tokens: each weight is read once for 32 tokens, each warp of a block takes one part of
 *           the inputs of the same 16 rows; a block goes from row tile to row tile, and its next weights
 *           are on their way before it needs them. Many tokens: each warp takes 16 rows and all inputs;
 *           a block's 8 warps share the columns in shared memory.
 *
 * A form is a row tile of a matrix. It supplies: CHUNKS in a unit, MANY tiles of columns for a warp with many
 * tokens, load() of a lane's words, multiply() of a unit into sums, fold() of a part's sums into FOLDS
 * numbers for one corner of mma()'s result (corner 2 h + j: row g + 8 h, column 2 t + j), and merge() of
 * these numbers, each with its factor() of the row, into the total, part after part. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/ptx.h"

enum { WARPS = PARTS };

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

/* Where a tile has more columns than there are tokens, the last one stands in: columns of a
 * product do not mix, and nobody looks at what becomes of these. */
static __device__ __forceinline__ int clamped(int column, int used) {
    return column < used ? column : used - 1;
}

/* Columns straight from memory. */
struct columns_in_memory {
    const struct packed_input &x;
    int first, used; /* column of this tile, columns that are not padding */
    int g, t;
    __device__ __forceinline__ int column(int tile) const {
        return clamped(first + tile * TILE_COLS + g, used);
    }
    __device__ __forceinline__ uint4 get(int chunk, int pair, int tile) const {
        int col = column(tile);
        return __ldg(x.columns + ((size_t)(chunk * 4 + pair) * (size_t)x.n_cols + (size_t)col) * 4 +
                     t);
    }
    __device__ __forceinline__ uint4 group(int unit, int tile) const {
        int col = column(tile);
        return __ldg(x.group_cols + ((size_t)unit * (size_t)x.n_cols + (size_t)col) * 4 + t);
    }
};

/* Columns of one part, which its warp has brought into shared memory all at once: a load that
 * waits for memory in the middle of a unit costs more than the unit. */
struct columns_of_part {
    uint4 *columns; /* (chunks, 4 pairs, used, 4 lanes) */
    uint4 *groups;  /* (units, used, 4 lanes) */
    int first_unit, per_unit, used;
    int g, t;

    /* Bytes for a part of so many units. */
    static __host__ __device__ __forceinline__ size_t bytes(int units, int per_unit, int used) {
        return (size_t)units * (size_t)used * 4 * (4 * (size_t)per_unit + 1) * sizeof(uint4);
    }
    __device__ __forceinline__ void bring(const struct packed_input &x, int u0, int u1, int first,
                                          int lane) {
        int width = used * 4, rows = (u1 - u0) * per_unit * 4, pitch = x.n_cols * 4;
        /* Place i of all is column i % width of row i / width, kept up without dividing. */
        int row = lane / width, at = lane % width, rows_on = 32 / width, on = 32 % width;
        const uint4 *from = x.columns + (size_t)(u0 * per_unit * 4) * (size_t)pitch + first * 4;
        const uint4 *sums = x.group_cols + (size_t)u0 * (size_t)pitch + first * 4;
        for (int i = lane; row < rows; i += 32) {
            copy_async(columns + i, from + (size_t)row * (size_t)pitch + at, true);
            if (per_unit == 2 && row < u1 - u0)
                copy_async(groups + i, sums + (size_t)row * (size_t)pitch + at, true);
            row += rows_on;
            at += on;
            if (at >= width) {
                at -= width;
                row++;
            }
        }
        copy_commit();
        copy_wait(0);
        warp_sync();
    }
    __device__ __forceinline__ uint4 get(int chunk, int pair, int tile) const {
        int col = clamped(tile * TILE_COLS + g, used);
        return columns[(((chunk - first_unit * per_unit) * 4 + pair) * used + col) * 4 + t];
    }
    __device__ __forceinline__ uint4 group(int unit, int tile) const {
        int col = clamped(tile * TILE_COLS + g, used);
        return groups[((unit - first_unit) * used + col) * 4 + t];
    }
};

/* Columns of one chunk that the block has brought into shared memory. */
template <int TILES> struct columns_in_shared {
    const uint4 *chunk; /* (4 pairs, TILES * TILE_COLS, 4 lanes) */
    columns_in_memory memory;
    __device__ __forceinline__ uint4 get(int, int pair, int tile) const {
        return chunk[(pair * TILES * TILE_COLS + tile * TILE_COLS + memory.g) * 4 + memory.t];
    }
    __device__ __forceinline__ uint4 group(int unit, int tile) const {
        return memory.group(unit, tile);
    }
};

/* The first unit of a part; of part PARTS, the end. */
static __host__ __device__ __forceinline__ int part_begin(int units, int part) {
    return units * part / PARTS;
}

/* Row tiles of a set, one after another. */
static __device__ __forceinline__ int tiles_in(const struct product_set &set) {
    const struct product &last = set.each[set.n - 1];
    return last.first_block + tiles_of(last.rows);
}

/* A warp's weights on their way: of the units of its part in one row tile, then in the block's next. */
template <class FORM> struct few_stream {
    FORM now, after;
    typename FORM::words next;
    int lane, u0, u1, n_tiles;

    __device__ __forceinline__ void start(const struct product_set &set, int tile) {
        const struct product &p = set.each[matrix_of(set, tile)];
        after.start(set, p, tile - p.first_block, lane);
        if (u0 < u1) after.load(next, u0);
    }
    /* The words of unit u, while those that follow set out. */
    __device__ __forceinline__ typename FORM::words take(const struct product_set &set, int u,
                                                         int follow) {
        typename FORM::words words = next;
        if (u + 1 < u1)
            now.load(next, u + 1);
        else if (follow < n_tiles)
            start(set, follow);
        return words;
    }
};

/* The sums of the block's parts in order, and what is done with them. */
template <class FORM, int TILES>
static __device__ __forceinline__ void few_merge(const struct product_set &set, int tile, int first,
                                                 const float *parts, int warp, int lane) {
    const struct product &p = set.each[matrix_of(set, tile)];
    constexpr int FOLDS = FORM::FOLDS;
    for (int i = warp; i < 4 * TILES; i += WARPS) {
        int corner = i % 4, token = first + i / 4 * TILE_COLS + lane % 4 * 2 + corner % 2;
        int row = (tile - p.first_block) * TILE_ROWS + lane / 4 + 8 * (corner / 2);
        if (row >= p.rows || token >= set.x.n_tokens) continue;
        float total = 0;
#pragma unroll
        for (int q = 0; q < PARTS; q++)
#pragma unroll
            for (int f = 0; f < FOLDS; f++)
                total = FORM::merge(total, FORM::factor(p, row, f),
                                    parts[((q * TILES * 4 + i) * FOLDS + f) * 32 + lane]);
        put(p, set.x.n_tokens, row, token, total * set.x.unscale[token]);
    }
}

template <class FORM, int TILES, class COLUMNS>
static __device__ __forceinline__ void few_tiles(const struct product_set &set,
                                                 few_stream<FORM> &stream, const COLUMNS &columns,
                                                 int first, float *parts, int part) {
    constexpr int EACH = FORM::template sums<1>::N, FOLDS = FORM::FOLDS;
    constexpr int SIZE = PARTS * TILES * 4 * FOLDS * 32;
    int lane = stream.lane;
    float *mine = parts;
    for (int tile = (int)blockIdx.x, follow; tile < stream.n_tiles; tile = follow) {
        typename FORM::template sums<TILES> sum;
        follow = tile + (int)gridDim.x;
        stream.now = stream.after;
        sum.clear();
        if (stream.u0 == stream.u1 && follow < stream.n_tiles) stream.start(set, follow);
        for (int u = stream.u0; u < stream.u1; u++) {
            FORM form = stream.now;
            typename FORM::words words = stream.take(set, u, follow);
#pragma unroll
            for (int c = 0; c < FORM::CHUNKS; c++)
                form.template multiply<TILES>(sum, words, u, c, columns, set.x, first);
        }
#pragma unroll
        for (int i = 0; i < 4 * TILES; i++) {
            float out[FOLDS];
            FORM::fold(out, sum.v + i / 4 * EACH, i % 4);
#pragma unroll
            for (int f = 0; f < FOLDS; f++)
                mine[((part * TILES * 4 + i) * FOLDS + f) * 32 + lane] = out[f];
        }
        block_sync();
        few_merge<FORM, TILES>(set, tile, first, mine, part, lane);
        /* Others may still read these sums when the next are written. */
        if (TILES > 2)
            block_sync();
        else
            mine = mine == parts ? parts + SIZE : parts;
    }
}

/* Floats of shared memory for the sums of the parts. */
template <class FORM, int TILES> static constexpr __host__ __device__ int few_sums() {
    return (TILES > 2 ? 1 : 2) * PARTS * TILES * 4 * FORM::FOLDS * 32;
}

template <class FORM, int TILES, bool STAGED>
__global__ void __launch_bounds__(WARPS * 32, FORM::template blocks<TILES, STAGED>())
    few_tokens(const struct product_set set) {
    SHARED_ARRAY(float, parts, (few_sums<FORM, TILES>()));
    int part = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int units = FORM::units(set.cols);
    few_stream<FORM> stream;
    stream.lane = lane;
    stream.u0 = part_begin(units, part);
    stream.u1 = part_begin(units, part + 1);
    stream.n_tiles = tiles_in(set);
    stream.start(set, (int)blockIdx.x); /* weights do not wait for the kernel before */
    kernel_begin();
    int first = (int)blockIdx.y * TILES * TILE_COLS, left = set.x.n_tokens - first;
    int used = left < TILES * TILE_COLS ? left : TILES * TILE_COLS, g = lane / 4, t = lane % 4;
    if (STAGED) {
        SHARED_DYNAMIC(unsigned char, staged);
        int most = (units + PARTS - 1) / PARTS;
        size_t chunks = (size_t)most * FORM::CHUNKS * 4 * (size_t)used * 4 * sizeof(uint4);
        unsigned char *mine = staged + columns_of_part::bytes(most, FORM::CHUNKS, used) * part;
        columns_of_part columns{reinterpret_cast<uint4 *>(mine),
                                reinterpret_cast<uint4 *>(mine + chunks),
                                stream.u0,
                                FORM::CHUNKS,
                                used,
                                g,
                                t};
        columns.bring(set.x, stream.u0, stream.u1, first, lane);
        few_tiles<FORM, TILES>(set, stream, columns, first, parts, part);
    } else {
        columns_in_memory columns{set.x, first, first + used, g, t};
        few_tiles<FORM, TILES>(set, stream, columns, first, parts, part);
    }
}

/* A part's sums into totals; rows past the matrix merge as row 0 and are dropped. */
template <class FORM, int TILES>
static __device__ __forceinline__ void merge_part(float *total, const float *v,
                                                  const struct product &p, int row0) {
    constexpr int EACH = FORM::template sums<1>::N;
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++) {
        float out[FORM::FOLDS];
        int row = row0 + 8 * (i % 4 / 2);
        FORM::fold(out, v + i / 4 * EACH, i % 4);
#pragma unroll
        for (int f = 0; f < FORM::FOLDS; f++)
            total[i] = FORM::merge(total[i], FORM::factor(p, row < p.rows ? row : 0, f), out[f]);
    }
}

/* Starts to bring the columns of a chunk for TILES tiles from column first on. */
template <int TILES>
static __device__ __forceinline__ void bring_chunk(uint4 *to, const struct packed_input &x,
                                                   int chunk, int first) {
    enum { WIDTH = TILES * TILE_COLS * 4 };
    int last = (x.n_cols - first) * 4 - 1;
#pragma unroll
    for (int i = (int)threadIdx.x; i < 4 * WIDTH; i += WARPS * 32) {
        int pair = i / WIDTH, at = i % WIDTH;
        /* Past the last column stands the last lane's, which nobody looks at. */
        copy_async(to + i,
                   x.columns + ((size_t)(chunk * 4 + pair) * (size_t)x.n_cols + (size_t)first) * 4 +
                       (at < last ? at : last),
                   true);
    }
}

template <class FORM>
__global__ void __launch_bounds__(WARPS * 32) many_tokens(const struct product_set set) {
    enum { MANY_TILES = FORM::MANY, CHUNK_WORDS = 4 * MANY_TILES * TILE_COLS * 4 };
    SHARED_ARRAY(uint4, shared, 2 * CHUNK_WORDS);
    const struct product &p = set.each[matrix_of(set, (int)blockIdx.x)];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int tile = ((int)blockIdx.x - p.first_block) * WARPS + warp, units = FORM::units(set.cols);
    int first = (int)blockIdx.y * MANY_TILES * TILE_COLS;
    bool works = tile * TILE_ROWS < p.rows;
    int row0 = tile * TILE_ROWS + lane / 4;
    typename FORM::template sums<MANY_TILES> sum;
    float total[MANY_TILES * 4]; /* corners of each tile */
    FORM form;
    form.start(set, p, works ? tile : 0, lane);
    typename FORM::words next;
    form.load(next, 0);
    kernel_begin();
    bring_chunk<MANY_TILES>(shared, set.x, 0, first);
    copy_commit();
    sum.clear();
#pragma unroll
    for (int i = 0; i < MANY_TILES * 4; i++) total[i] = 0;
    int part = 0;
    for (int u = 0; u < units; u++) {
        typename FORM::words now = next;
        while (u == part_begin(units, part + 1)) {
            merge_part<FORM, MANY_TILES>(total, sum.v, p, row0);
            sum.clear();
            part++;
        }
        if (u + 1 < units) form.load(next, u + 1);
#pragma unroll
        for (int c = 0; c < FORM::CHUNKS; c++) {
            int chunk = u * FORM::CHUNKS + c;
            columns_in_shared<MANY_TILES> columns{
                shared + chunk % 2 * CHUNK_WORDS,
                {set.x, first, set.x.n_tokens, lane / 4, lane % 4}};
            copy_wait(0);
            block_sync(); /* this chunk is there, and the one before is no longer read */
            if (chunk + 1 < units * FORM::CHUNKS)
                bring_chunk<MANY_TILES>(shared + (chunk + 1) % 2 * CHUNK_WORDS, set.x, chunk + 1,
                                        first);
            copy_commit();
            form.template multiply<MANY_TILES>(sum, now, u, c, columns, set.x, first);
        }
    }
    for (; part < PARTS; part++) {
        merge_part<FORM, MANY_TILES>(total, sum.v, p, row0);
        sum.clear();
    }
#pragma unroll
    for (int i = 0; i < 4 * MANY_TILES; i++) {
        int token = first + i / 4 * TILE_COLS + lane % 4 * 2 + i % 2, row = row0 + 8 * (i % 4 / 2);
        if (works && row < p.rows && token < set.x.n_tokens)
            put(p, set.x.n_tokens, row, token, total[i] * set.x.unscale[token]);
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

enum {
    MOST_STAGED = 100 << 10, /* bytes of columns that a block brings: two blocks fit then */
    BLOCK_KEPT = 1 << 10     /* of a multiprocessor's shared memory, by the system for each block */
};

/* As many blocks as there is room for at once, which share the row tiles: blocks that came later would begin with
 * nothing on its way. */
template <class FORM, int TILES>
static cudaError_t few_launch(int tiles, int slices, struct product_set *set, cudaStream_t stream) {
    int most = (FORM::units(set->cols) + PARTS - 1) / PARTS;
    size_t own = few_sums<FORM, TILES>() * sizeof(float), bytes = 0;
    bool staged = false;
    if constexpr (TILES < 4) {
        bytes = PARTS * columns_of_part::bytes(most, FORM::CHUNKS, set->x.n_tokens);
        staged = bytes <= MOST_STAGED && bytes + own <= set->shared;
    }
    int blocks = FORM::template blocks<TILES, false>();
    if (staged) {
        blocks = FORM::template blocks<TILES, true>();
        while (blocks > 1 && (bytes + own + BLOCK_KEPT) * (size_t)blocks > set->room) blocks--;
    }
    blocks = (blocks * set->processors + slices - 1) / slices;
    dim3 grid((unsigned)(tiles < blocks ? tiles : blocks), (unsigned)slices);
    if constexpr (TILES < 4)
        if (staged)
            return gpu_launch(few_tokens<FORM, TILES, true>, grid, WARPS * 32, bytes, stream, *set);
    return gpu_launch(few_tokens<FORM, TILES, false>, grid, WARPS * 32, 0, stream, *set);
}

/* Whether more tokens than FEW_TOKENS are better cut into slices of as many than shared by blocks of
 * 128 rows: those take 50 us of an H200 for 4096 inputs however few there are, a slice 0.038 us for each
 * row tile (SPEED.md). */
template <class FORM> static bool in_slices(const struct product_set *set, int tiles, int blocks) {
    int n = set->x.n_tokens, columns = (n + TILE_COLS * FORM::MANY - 1) / (TILE_COLS * FORM::MANY);
    int waves = (blocks * columns + set->processors - 1) / set->processors;
    int slices = (n + FEW_TOKENS - 1) / FEW_TOKENS;
    double wave = FORM::MANY * 50. / 8, slice = 0.038 * tiles * 132 / set->processors;
    return slices * slice < waves * wave;
}

template <class FORM>
static cudaError_t product_launch(struct product_set *set, cudaStream_t stream) {
    int n = set->x.n_tokens, tiles = 0, blocks = 0, first = 0;
    for (int i = 0; i < set->n; i++) {
        int mine = tiles_of(set->each[i].rows);
        tiles += mine;
        blocks += (mine + WARPS - 1) / WARPS;
    }
    bool few = n <= FEW_TOKENS || set->way == WAY_FEW ||
               (set->way == WAY_BEST && in_slices<FORM>(set, tiles, blocks));
    for (int i = 0; i < set->n; i++) {
        int mine = tiles_of(set->each[i].rows);
        set->each[i].first_block = first;
        first += few ? mine : (mine + WARPS - 1) / WARPS;
    }
    if (n <= TILE_COLS) return few_launch<FORM, 1>(tiles, 1, set, stream);
    if (n <= 2 * TILE_COLS) return few_launch<FORM, 2>(tiles, 1, set, stream);
    if (few) return few_launch<FORM, 4>(tiles, (n + FEW_TOKENS - 1) / FEW_TOKENS, set, stream);
    int width = TILE_COLS * FORM::MANY;
    dim3 grid((unsigned)first, (unsigned)((n + width - 1) / width));
    return gpu_launch(many_tokens<FORM>, grid, WARPS * 32, 0, stream, *set);
}

#endif
