/* Attention over fp16 keys and values on tensor cores. A warp has a tile of 16 query rows: tokens of one
 * sequence times heads that share keys. Rows of mma() never mix, so a row's bits do not
 * depend on its neighbours, and a token alone has those that it has in a prompt.
 *
 * The inputs of a step may be any as long as both sides agree. Scores: lane t's eight dimensions of 32
 * in a row are its registers of two steps, so keys are read 16 bytes at a time. Values: lane g has
 * eight dimensions of 64 of four positions, column g of tile j is dimension 8 g + j, and pairs of
 * positions are put together by byte permutes. Queries and weights are two halves each. */
#include "kernels/cuda/attention.cuh"

enum {
    ROWS = 16,
    QUARTERS = 4, /* of a piece: each has sums of its own, which are added in order */
    QUARTER = SPLIT / QUARTERS,
    KEY_TILES = QUARTER / 8, /* of a quarter */
    VALUE_STEPS = QUARTER / 16
};

struct tile_row {
    int token, head, pos, first; /* token -1: no row; pos -1 then */
};

/* What a warp knows of its tile, and a lane of rows g and g + 8. */
struct tile_place {
    struct tile_row row[2];
    int kv_head, last, begin; /* the last position that a row sees, the first */
    const int32_t *blocks;
};

/* Row r of the block's tile. */
static __device__ __forceinline__ struct tile_row row_at(const struct attention_args &a, int r) {
    int per_kv = a.n_heads / a.kv.n_kv_heads, heads = per_kv < ROWS ? per_kv : ROWS;
    int tokens = ROWS / heads, head_sets = (per_kv + ROWS - 1) / ROWS;
    int token_sets = (ROWS + tokens - 1) / tokens, y = (int)blockIdx.y;
    int slot = y % token_sets * tokens + r / heads;
    int in_kv = y / token_sets % head_sets * ROWS + r % heads;
    struct tile_row row = {-1, y / token_sets / head_sets * per_kv + in_kv, -1, 0};
    if (r / heads < tokens && slot < TILE_TOKENS && in_kv < per_kv)
        row.token = a.batch.tiles[(size_t)blockIdx.x * TILE_TOKENS + (size_t)slot];
    if (row.token < 0) return row;
    row.pos = a.batch.positions[row.token];
    row.first = first_seen(a.window, row.pos);
    return row;
}

static __device__ __forceinline__ struct tile_place place_of(const struct attention_args &a,
                                                             int lane) {
    struct tile_place at;
    at.last = -1;
    at.begin = 0x7fffffff;
#pragma unroll
    for (int high = 0; high < 2; high++) {
        struct tile_row row = row_at(a, lane / 4 + 8 * high);
        at.row[high] = row;
        if (row.token >= 0 && row.pos > at.last) at.last = row.pos;
        if (row.token >= 0 && row.first < at.begin) at.begin = row.first;
    }
    for (int step = 4; step < 32; step *= 2) {
        int last = warp_xor(at.last, step), begin = warp_xor(at.begin, step);
        at.last = last > at.last ? last : at.last;
        at.begin = begin < at.begin ? begin : at.begin;
    }
    int seq = a.batch.seqs[a.batch.tiles[(size_t)blockIdx.x * TILE_TOKENS]];
    at.kv_head = row_at(a, 0).head / (a.n_heads / a.kv.n_kv_heads);
    at.blocks = a.batch.blocks + (size_t)seq * (size_t)a.batch.max_blocks;
    return at;
}

/* x as two halves in pairs. */
static __device__ __forceinline__ void split_pair(uint32_t *high, uint32_t *low, float x, float y) {
    uint32_t hx = to_half(x), hy = to_half(y);
    *high = hx | hy << 16;
    *low = to_half(x - from_half(hx)) | to_half(y - from_half(hy)) << 16;
}

/* The lane's registers of the A side of 32 dimensions from 32 c on: (step, halves). */
static __device__ __forceinline__ void load_queries(uint4 *mine, const struct attention_args &a,
                                                    const struct tile_place &at, int c, int t) {
#pragma unroll
    for (int step = 0; step < 2; step++) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; i++) { /* register: row i % 2, dimensions 2 (i / 2) of four */
            const struct tile_row &row = at.row[i % 2];
            int d = 32 * c + 8 * t + 4 * step + i / 2 * 2;
            const float *q = a.q + ((size_t)row.token * (size_t)a.n_heads + (size_t)row.head) *
                                       (size_t)a.kv.head_dim;
            float x = row.token >= 0 && d < a.kv.head_dim ? q[d] : 0;
            float y = row.token >= 0 && d + 1 < a.kv.head_dim ? q[d + 1] : 0;
            split_pair(&high[i], &low[i], x, y);
        }
        mine[(c * 2 + step) * 64] = uint4{high[0], high[1], high[2], high[3]};
        mine[(c * 2 + step) * 64 + 32] = uint4{low[0], low[1], low[2], low[3]};
    }
}

/* Eight halves of a row of the pool; zeros past the row's end and past what the tile sees. */
static __device__ __forceinline__ uint4 load_pool(const struct attention_args &a,
                                                  const struct tile_place &at, int position,
                                                  int dim, int is_value) {
    if (position > at.last || position < at.begin || dim >= a.kv.padded) return uint4{0, 0, 0, 0};
    size_t row = row_in(a.kv, at.blocks[position / KV_TOKENS], position, at.kv_head, is_value);
    return __ldg(reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(a.kv.data) + row +
                                                 (size_t)dim));
}

static __device__ __forceinline__ void mma_of(float c[4], const uint4 &a, uint32_t b0,
                                              uint32_t b1) {
    const uint32_t sides[4] = {a.x, a.y, a.z, a.w};
    mma(c, sides, b0, b1);
}

/* Whether some row of the tile sees something of the quarter from base on. */
static __device__ __forceinline__ bool is_seen(const struct tile_place &at, int base) {
    return base <= at.last && base + QUARTER > at.begin;
}

/* Scores of a quarter: of tile j the corners, position base + 8 j + 2 t + i % 2 for row i / 2; -INFINITY
 * where the row does not see. most: raised to the largest of the lane's. */
template <int DIMS>
static __device__ __forceinline__ void
score_quarter(float s[KEY_TILES][4], float most[2], const uint4 *mine,
              const struct attention_args &a, const struct tile_place &at, int base, int lane) {
    int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < KEY_TILES * 4; i++) s[i / 4][i % 4] = 0;
    if (is_seen(at, base))
#pragma unroll
        for (int c = 0; c < DIMS / 32; c++) {
            uint4 q[4], k[KEY_TILES]; /* q: step, halves */
#pragma unroll
            for (int j = 0; j < KEY_TILES; j++)
                k[j] = load_pool(a, at, base + 8 * j + g, 32 * c + 8 * t, 0);
#pragma unroll
            for (int i = 0; i < 4; i++) q[i] = mine[(c * 4 + i) * 32];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < KEY_TILES; j++)
                    mma_of(s[j], q[i], i < 2 ? k[j].x : k[j].z, i < 2 ? k[j].y : k[j].w);
        }
#pragma unroll
    for (int high = 0; high < 2; high++) {
        const struct tile_row &row = at.row[high];
        float slope = a.slopes && row.token >= 0 ? a.slopes[row.head] : 0;
#pragma unroll
        for (int i = 0; i < 2 * KEY_TILES; i++) {
            int position = base + i / 2 * 8 + 2 * t + i % 2;
            float *score = &s[i / 2][2 * high + i % 2], v = *score * a.scale;
            if (a.slopes) v += slope * (float)(position - row.pos);
            *score = position <= row.pos && position >= row.first ? v : -INFINITY;
            most[high] = fmaxf(most[high], *score);
        }
    }
}

/* Weights of a quarter as halves, and their sums for the lane's rows. */
struct quarter_weights {
    float sum[2];
    uint32_t high[KEY_TILES][2], low[KEY_TILES][2]; /* (tile, row) */
};

static __device__ __forceinline__ void
weigh_quarter(struct quarter_weights *w, const float s[KEY_TILES][4], const float most[2]) {
#pragma unroll
    for (int high = 0; high < 2; high++) {
        float least = most[high] == -INFINITY ? 0 : most[high], sum = 0;
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++) {
            float p0 = expf(s[j][2 * high] - least), p1 = expf(s[j][2 * high + 1] - least);
            sum += p0 + p1;
            split_pair(&w->high[j][high], &w->low[j][high], p0, p1);
        }
        sum += warp_xor(sum, 1);
        w->sum[high] = sum + warp_xor(sum, 2);
    }
}

/* Weighted sums of a quarter's values: of tile j of 64 dimensions n the corners, dimension
 * 64 n + 16 t + 8 (i % 2) + j. */
template <int DIMS>
static __device__ __forceinline__ void
sum_values(float sum[DIMS / 8][4], const struct quarter_weights &w, const struct attention_args &a,
           const struct tile_place &at, int base, int lane) {
    int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < DIMS / 2; i++) sum[i / 4][i % 4] = 0;
#pragma unroll
    for (int step = 0; step < VALUE_STEPS; step++) {
        const uint32_t *h0 = w.high[2 * step], *h1 = w.high[2 * step + 1];
        const uint32_t *l0 = w.low[2 * step], *l1 = w.low[2 * step + 1];
        uint4 high = {h0[0], h0[1], h1[0], h1[1]}, low = {l0[0], l0[1], l1[0], l1[1]};
#pragma unroll
        for (int n = 0; n < DIMS / 64; n++) {
            uint32_t v[4][4]; /* (position of four, pair of dimensions) */
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int position = base + 16 * step + i / 2 * 8 + 2 * t + i % 2;
                uint4 eight = load_pool(a, at, position, 64 * n + 8 * g, 1);
                v[i][0] = eight.x;
                v[i][1] = eight.y;
                v[i][2] = eight.z;
                v[i][3] = eight.w;
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                uint32_t pick = j % 2 ? 0x7632u : 0x5410u;
                uint32_t b0 = pick_bytes(v[0][j / 2], v[1][j / 2], pick);
                uint32_t b1 = pick_bytes(v[2][j / 2], v[3][j / 2], pick);
                mma_of(sum[n * 8 + j], high, b0, b1);
                mma_of(sum[n * 8 + j], low, b0, b1);
            }
        }
    }
}

/* Calls put(row 0 or 1, dimension, place of the lane's sum) for each of them. */
template <int DIMS, class F> static __device__ __forceinline__ void each_sum(int lane, F put) {
#pragma unroll
    for (int n = 0; n < DIMS / 64; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 8; j++)
                put(i / 2, 64 * n + 16 * (lane % 4) + i % 2 * 8 + j, (n * 8 + j) * 4 + i);
}

static __device__ __forceinline__ float *dst_of(const struct attention_args &a,
                                                const struct tile_row &row) {
    return a.dst +
           ((size_t)row.token * (size_t)a.n_heads + (size_t)row.head) * (size_t)a.kv.head_dim;
}

/* A piece of a tile by one warp; sum and total are its own. */
template <int DIMS>
static __device__ __forceinline__ void
whole_piece(float sum[DIMS / 8][4], float most[2], float total[2], const uint4 *mine,
            const struct attention_args &a, const struct tile_place &at, int base, int lane) {
    float s[QUARTERS][KEY_TILES][4];
    most[0] = most[1] = -INFINITY;
    total[0] = total[1] = 0;
#pragma unroll
    for (int q = 0; q < QUARTERS; q++)
        score_quarter<DIMS>(s[q], most, mine, a, at, base + q * QUARTER, lane);
#pragma unroll
    for (int high = 0; high < 2; high++) {
        most[high] = fmaxf(most[high], warp_xor(most[high], 1));
        most[high] = fmaxf(most[high], warp_xor(most[high], 2));
    }
#pragma unroll
    for (int i = 0; i < DIMS / 2; i++) sum[i / 4][i % 4] = 0;
#pragma unroll
    for (int q = 0; q < QUARTERS; q++) {
        struct quarter_weights w;
        float own[DIMS / 8][4];
        if (!is_seen(at, base + q * QUARTER)) continue; /* would add zeros */
        weigh_quarter(&w, s[q], most);
        sum_values<DIMS>(own, w, a, at, base + q * QUARTER, lane);
        total[0] += w.sum[0];
        total[1] += w.sum[1];
#pragma unroll
        for (int i = 0; i < DIMS / 2; i++) sum[i / 4][i % 4] += own[i / 4][i % 4];
    }
}

/* All pieces of the tile one after another, by one warp. */
template <int DIMS>
static __global__ void __launch_bounds__(32) walk_kernel(const struct attention_args a) {
    SHARED_ARRAY(uint4, queries, DIMS / 32 * 4 * 32);
    SHARED_ARRAY(float, sums, DIMS / 2 * 32); /* so far: registers have no room for them */
    kernel_begin();
    int lane = (int)threadIdx.x;
    struct tile_place at = place_of(a, lane);
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    uint4 *mine = queries + lane;
    float *all = sums + lane;
    if (at.last < 0) return; /* the whole warp */
    for (int c = 0; c < DIMS / 32; c++) load_queries(mine, a, at, c, lane % 4);
#pragma unroll
    for (int i = 0; i < DIMS / 2; i++) all[i * 32] = 0;
    for (int piece = at.begin / SPLIT; piece <= at.last / SPLIT; piece++) {
        float sum[DIMS / 8][4], old[2], next[2], own_most[2], own_total[2];
        whole_piece<DIMS>(sum, own_most, own_total, mine, a, at, piece * SPLIT, lane);
#pragma unroll
        for (int high = 0; high < 2; high++) {
            float larger = fmaxf(most[high], own_most[high]);
            bool seen = own_most[high] != -INFINITY; /* or the piece changes nothing */
            old[high] = seen ? expf(most[high] - larger) : 1;
            next[high] = seen ? expf(own_most[high] - larger) : 0;
            most[high] = larger;
            total[high] = combined(total[high], old[high], own_total[high], next[high]);
        }
#pragma unroll
        for (int i = 0; i < DIMS / 2; i++)
            all[i * 32] = combined(all[i * 32], old[i % 4 / 2], sum[i / 4][i % 4], next[i % 4 / 2]);
    }
    each_sum<DIMS>(lane, [&](int high, int dim, int i) {
        const struct tile_row &row = at.row[high];
        if (row.token >= 0 && dim < a.kv.head_dim) dst_of(a, row)[dim] = all[i * 32] / total[high];
    });
}

/* What the warps of split_kernel leave for each other. */
template <int DIMS> struct split_room {
    enum { PITCH = DIMS + 4 };
    float most[QUARTERS][ROWS], total[QUARTERS][ROWS], sum[QUARTERS][ROWS][PITCH];
};

/* The quarters' sums in order, to where pieces lie, or, where there is only one, to the result. */
template <int DIMS>
static __device__ __forceinline__ void put_piece(const struct attention_args &a,
                                                 const struct split_room<DIMS> &room, int piece) {
    for (int i = (int)threadIdx.x; i < ROWS * DIMS; i += QUARTERS * 32) {
        int r = i / DIMS, dim = i % DIMS;
        struct tile_row row = row_at(a, r);
        if (row.token < 0 || dim >= a.kv.padded) continue;
        float v = 0, most = -INFINITY, total = 0;
#pragma unroll
        for (int q = 0; q < QUARTERS; q++) {
            v += room.sum[q][r][dim];
            total += room.total[q][r];
            most = fmaxf(most, room.most[q][r]);
        }
        if (a.n_splits == 1) {
            if (dim < a.kv.head_dim) dst_of(a, row)[dim] = v / total;
            continue;
        }
        float *to = piece_of(a, row.token, row.head, piece);
        to[dim] = v;
        if (dim) continue;
        to[a.kv.padded] = most;
        to[a.kv.padded + 1] = total;
    }
}

/* One piece of the tile, a quarter for each warp; merge_kernel puts pieces together. */
template <int DIMS>
static __global__ void __launch_bounds__(QUARTERS * 32)
    split_kernel(const struct attention_args a) {
    SHARED_ARRAY(uint4, queries, DIMS / 32 * 4 * 32);
    SHARED_ARRAY(struct split_room<DIMS>, room, 1);
    kernel_begin();
    int lane = (int)threadIdx.x % 32, q = (int)threadIdx.x / 32, piece = (int)blockIdx.z;
    struct tile_place at = place_of(a, lane);
    if (at.last < 0 || piece < at.begin / SPLIT || piece > at.last / SPLIT) return; /* the block */
    int base = piece * SPLIT + q * QUARTER;
    float s[KEY_TILES][4], most[2] = {-INFINITY, -INFINITY}, sum[DIMS / 8][4];
    struct quarter_weights w;
    for (int c = q; c < DIMS / 32; c += QUARTERS) load_queries(queries + lane, a, at, c, lane % 4);
    block_sync();
    score_quarter<DIMS>(s, most, queries + lane, a, at, base, lane);
#pragma unroll
    for (int high = 0; high < 2; high++) {
        most[high] = fmaxf(most[high], warp_xor(most[high], 1));
        most[high] = fmaxf(most[high], warp_xor(most[high], 2));
        if (lane % 4 == 0) room->most[q][lane / 4 + 8 * high] = most[high];
    }
    block_sync();
#pragma unroll
    for (int i = 0; i < 2 * QUARTERS; i++)
        most[i % 2] = fmaxf(most[i % 2], room->most[i / 2][lane / 4 + 8 * (i % 2)]);
    weigh_quarter(&w, s, most);
    sum_values<DIMS>(sum, w, a, at, base, lane);
#pragma unroll
    for (int high = 0; high < 2; high++)
        if (lane % 4 == 0) room->total[q][lane / 4 + 8 * high] = w.sum[high];
    each_sum<DIMS>(lane, [&](int high, int dim, int i) {
        if (at.row[high].token >= 0) room->sum[q][lane / 4 + 8 * high][dim] = sum[i / 4][i % 4];
    });
    block_sync();
    put_piece<DIMS>(a, *room, piece);
}

template <int DIMS>
static cudaError_t run(const struct attention_args *a, bool walk, cudaStream_t stream) {
    int per_kv = a->n_heads / a->kv.n_kv_heads, heads = per_kv < ROWS ? per_kv : ROWS;
    int tokens = ROWS / heads;
    unsigned y = (unsigned)(a->kv.n_kv_heads * ((per_kv + ROWS - 1) / ROWS) *
                            ((ROWS + tokens - 1) / tokens));
    unsigned x = (unsigned)a->batch.n_tiles;
    if (walk) return gpu_launch(walk_kernel<DIMS>, dim3(x, y), 32, 0, stream, *a);
    return gpu_launch(split_kernel<DIMS>, dim3(x, y, (unsigned)a->n_splits), QUARTERS * 32, 0,
                      stream, *a);
}

cudaError_t attention_tiles_run(const struct attention_args *a, bool walk, cudaStream_t stream) {
    return a->kv.padded <= 64 ? run<64>(a, walk, stream) : run<128>(a, walk, stream);
}
