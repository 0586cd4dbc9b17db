/* Attention over fp16 keys and values on tensor cores. A block is one warp with a tile of 16 query rows:
 * tokens of one sequence times heads that share keys. Rows of mma() never mix, so a row's bits do not
 * depend on its neighbours, and a token alone has those that it has in a prompt.
 *
 * The inputs of a step may be any as long as both sides agree. Scores: lane t's eight dimensions of 32
 * in a row are its registers of two steps, so keys are read 16 bytes at a time. Values: lane g has
 * eight dimensions of 64 of four positions, column g of tile j is dimension 8 g + j, and pairs of
 * positions are put together by byte permutes. Queries and weights are two halves each. */
#include "kernels/cuda/attention.cuh"

enum { ROWS = 16, KEY_TILES = SPLIT / 8, VALUE_STEPS = SPLIT / 16 };

/* What a lane knows of its rows g and g + 8. */
struct tile_row {
    int token, head, pos, first; /* pos -1: no row */
};

struct tile_place {
    struct tile_row row[2];
    int kv_head, last, begin; /* the last position that a row sees, the first */
    const int32_t *blocks;
};

static __device__ __forceinline__ struct tile_place place_of(const struct attention_args &a) {
    struct tile_place at;
    int per_kv = a.n_heads / a.kv.n_kv_heads, heads = per_kv < ROWS ? per_kv : ROWS;
    int tokens = ROWS / heads, head_sets = (per_kv + ROWS - 1) / ROWS;
    int token_sets = (ROWS + tokens - 1) / tokens, y = (int)blockIdx.y;
    int slot0 = y % token_sets * tokens, in_group = y / token_sets % head_sets * ROWS;
    const int32_t *slots = a.batch.tiles + (size_t)blockIdx.x * TILE_TOKENS;
    int lane = (int)threadIdx.x;
    at.kv_head = y / token_sets / head_sets;
    at.last = -1;
    at.begin = 0x7fffffff;
#pragma unroll
    for (int high = 0; high < 2; high++) {
        int r = lane / 4 + 8 * high, slot = slot0 + r / heads, in_kv = in_group + r % heads;
        struct tile_row row = {-1, at.kv_head * per_kv + in_kv, -1, 0};
        if (r / heads < tokens && slot < TILE_TOKENS && in_kv < per_kv) row.token = slots[slot];
        if (row.token >= 0) {
            row.pos = a.batch.positions[row.token];
            row.first = first_seen(a.window, row.pos);
            if (row.pos > at.last) at.last = row.pos;
            if (row.first < at.begin) at.begin = row.first;
        }
        at.row[high] = row;
    }
    for (int step = 4; step < 32; step *= 2) {
        int last = warp_xor(at.last, step), begin = warp_xor(at.begin, step);
        at.last = last > at.last ? last : at.last;
        at.begin = begin < at.begin ? begin : at.begin;
    }
    at.blocks = a.batch.blocks + (size_t)a.batch.seqs[slots[0]] * (size_t)a.batch.max_blocks;
    return at;
}

/* x as two halves in pairs. */
static __device__ __forceinline__ void split_pair(uint32_t *high, uint32_t *low, float x, float y) {
    uint32_t hx = to_half(x), hy = to_half(y);
    *high = hx | hy << 16;
    *low = to_half(x - from_half(hx)) | to_half(y - from_half(hy)) << 16;
}

/* The lane's own registers of the A side: (32 dimensions, step, halves). */
template <int DIMS>
static __device__ __forceinline__ void load_queries(uint4 *mine, const struct attention_args &a,
                                                    const struct tile_place &at) {
    int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < DIMS / 32; c++)
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

/* Scores of a piece: of tile j the corners, position base + 8 j + 2 t + i % 2 for row i / 2. */
template <int DIMS>
static __device__ __forceinline__ void score_piece(float s[KEY_TILES][4], const uint4 *mine,
                                                   const struct attention_args &a,
                                                   const struct tile_place &at, int base) {
    int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < KEY_TILES * 4; i++) s[i / 4][i % 4] = 0;
#pragma unroll
    for (int c = 0; c < DIMS / 32; c++) {
        uint4 q[4]; /* step, halves */
#pragma unroll
        for (int i = 0; i < 4; i++) q[i] = mine[(c * 4 + i) * 32];
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++) {
            uint4 k = load_pool(a, at, base + 8 * j + g, 32 * c + 8 * t, 0);
            mma_of(s[j], q[0], k.x, k.y);
            mma_of(s[j], q[1], k.x, k.y);
            mma_of(s[j], q[2], k.z, k.w);
            mma_of(s[j], q[3], k.z, k.w);
        }
    }
}

/* The largest score of each of the lane's rows, the sum of weights, and the weights as halves. */
struct piece_weights {
    float most[2], sum[2];
    uint32_t high[KEY_TILES][2], low[KEY_TILES][2]; /* (tile, row) */
};

static __device__ __forceinline__ void weigh_piece(struct piece_weights *w, float s[KEY_TILES][4],
                                                   const struct attention_args &a,
                                                   const struct tile_place &at, int base) {
    int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int high = 0; high < 2; high++) {
        const struct tile_row &row = at.row[high];
        float slope = a.slopes && row.token >= 0 ? a.slopes[row.head] : 0, most = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2 * KEY_TILES; i++) {
            int position = base + i / 2 * 8 + 2 * t + i % 2;
            float *score = &s[i / 2][2 * high + i % 2];
            float v = *score * a.scale;
            if (a.slopes) v += slope * (float)(position - row.pos);
            *score = position <= row.pos && position >= row.first ? v : -INFINITY;
            most = fmaxf(most, *score);
        }
        most = fmaxf(most, warp_xor(most, 1));
        most = fmaxf(most, warp_xor(most, 2));
        float least = most == -INFINITY ? 0 : most, sum = 0;
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++) {
            float p0 = expf(s[j][2 * high] - least), p1 = expf(s[j][2 * high + 1] - least);
            sum += p0 + p1;
            split_pair(&w->high[j][high], &w->low[j][high], p0, p1);
        }
        sum += warp_xor(sum, 1);
        w->most[high] = most;
        w->sum[high] = sum + warp_xor(sum, 2);
    }
}

/* Weighted sums of values: of tile j of 64 dimensions n the corners, dimension 64 n + 16 t + 8 (i % 2) + j. */
template <int DIMS>
static __device__ __forceinline__ void
sum_values(float sum[DIMS / 8][4], const struct piece_weights &w, const struct attention_args &a,
           const struct tile_place &at, int base) {
    int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
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

/* Calls put(row 0 or 1, dimension, the lane's sum's index) for each sum of the lane. */
template <int DIMS, class F> static __device__ __forceinline__ void each_sum(F put) {
    int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < DIMS / 64; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) put(i / 2, 64 * n + 16 * t + i % 2 * 8 + j, n * 8 + j, i);
}

template <int DIMS>
static __device__ __forceinline__ void write_rows(const struct attention_args &a,
                                                  const struct tile_place &at, const float *all,
                                                  const float total[2]) {
    each_sum<DIMS>([&](int high, int dim, int tile, int corner) {
        const struct tile_row &row = at.row[high];
        if (row.token < 0 || dim >= a.kv.head_dim) return;
        a.dst[((size_t)row.token * (size_t)a.n_heads + (size_t)row.head) * (size_t)a.kv.head_dim +
              (size_t)dim] = all[(tile * 4 + corner) * 32] / total[high];
    });
}

/* All pieces of the tile one after another. */
template <int DIMS>
static __global__ void __launch_bounds__(32) walk_kernel(const struct attention_args a) {
    SHARED_ARRAY(uint4, queries, DIMS / 32 * 4 * 32);
    SHARED_ARRAY(float, sums, DIMS / 2 * 32); /* so far: registers have no room for them */
    kernel_begin();
    struct tile_place at = place_of(a);
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    uint4 *mine = queries + threadIdx.x;
    float *all = sums + threadIdx.x;
    if (at.last < 0) return; /* the whole warp */
    load_queries<DIMS>(mine, a, at);
#pragma unroll
    for (int i = 0; i < DIMS / 2; i++) all[i * 32] = 0;
    for (int piece = at.begin / SPLIT; piece <= at.last / SPLIT; piece++) {
        float sum[DIMS / 8][4], old[2], next[2];
        struct piece_weights w;
        {
            float s[KEY_TILES][4];
            score_piece<DIMS>(s, mine, a, at, piece * SPLIT);
            weigh_piece(&w, s, a, at, piece * SPLIT);
        }
        sum_values<DIMS>(sum, w, a, at, piece * SPLIT);
#pragma unroll
        for (int high = 0; high < 2; high++) {
            float larger = fmaxf(most[high], w.most[high]);
            bool seen = w.most[high] != -INFINITY; /* or the piece changes nothing */
            old[high] = seen ? expf(most[high] - larger) : 1;
            next[high] = seen ? expf(w.most[high] - larger) : 0;
            most[high] = larger;
            total[high] = combined(total[high], old[high], w.sum[high], next[high]);
        }
#pragma unroll
        for (int i = 0; i < DIMS / 2; i++)
            all[i * 32] = combined(all[i * 32], old[i % 4 / 2], sum[i / 4][i % 4], next[i % 4 / 2]);
    }
    write_rows<DIMS>(a, at, all, total);
}

/* One piece of the tile; merge_kernel puts them together. */
template <int DIMS>
static __global__ void __launch_bounds__(32) split_kernel(const struct attention_args a) {
    SHARED_ARRAY(uint4, queries, DIMS / 32 * 4 * 32);
    kernel_begin();
    struct tile_place at = place_of(a);
    int piece = (int)blockIdx.z;
    uint4 *mine = queries + threadIdx.x;
    if (at.last < 0 || piece < at.begin / SPLIT || piece > at.last / SPLIT) return;
    float sum[DIMS / 8][4];
    struct piece_weights w;
    load_queries<DIMS>(mine, a, at);
    {
        float s[KEY_TILES][4];
        score_piece<DIMS>(s, mine, a, at, piece * SPLIT);
        weigh_piece(&w, s, a, at, piece * SPLIT);
    }
    sum_values<DIMS>(sum, w, a, at, piece * SPLIT);
    each_sum<DIMS>([&](int high, int dim, int tile, int corner) {
        const struct tile_row &row = at.row[high];
        if (row.token < 0 || dim >= a.kv.padded) return;
        float *to = piece_of(a, row.token, row.head, piece);
        to[dim] = sum[tile][corner];
        if (dim) return;
        to[a.kv.padded] = w.most[high];
        to[a.kv.padded + 1] = w.sum[high];
    });
}

template <int DIMS>
static cudaError_t run(const struct attention_args *a, bool walk, cudaStream_t stream) {
    int per_kv = a->n_heads / a->kv.n_kv_heads, heads = per_kv < ROWS ? per_kv : ROWS;
    int tokens = ROWS / heads;
    unsigned y = (unsigned)(a->kv.n_kv_heads * ((per_kv + ROWS - 1) / ROWS) *
                            ((ROWS + tokens - 1) / tokens));
    unsigned x = (unsigned)a->batch.n_tiles;
    if (walk) return gpu_launch(walk_kernel<DIMS>, dim3(x, y), 32, 0, stream, *a);
    return gpu_launch(split_kernel<DIMS>, dim3(x, y, (unsigned)a->n_splits), 32, 0, stream, *a);
}

cudaError_t attention_tiles_run(const struct attention_args *a, bool walk, cudaStream_t stream) {
    return a->kv.padded <= 64 ? run<64>(a, walk, stream) : run<128>(a, walk, stream);
}
