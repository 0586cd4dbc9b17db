#include "kernels/cuda/attention.cuh"

enum { THREADS = 256, WARPS_IN_BLOCK = THREADS / 32, HEADS = 4, LANES_FOR_KEY = 4 };

static __device__ __forceinline__ size_t row_of(const struct kv_pool &kv,
                                                const struct batch_tables &batch, int token,
                                                int position, int head, int is_value) {
    return row_in(kv, blocks_of(batch, token)[position / KV_TOKENS], position, head, is_value);
}

static __global__ void __launch_bounds__(THREADS)
    store_kernel(struct kv_pool kv, struct batch_tables batch, const float *k, const float *v) {
    kernel_begin();
    int token = (int)blockIdx.x, head = (int)blockIdx.y;
    size_t from = ((size_t)token * (size_t)kv.n_kv_heads + (size_t)head) * (size_t)kv.head_dim;
    for (int value = 0; value < 2; value++) {
        size_t at = row_of(kv, batch, token, batch.positions[token], head, value);
        const float *src = (value ? v : k) + from;
        for (int d = (int)threadIdx.x; d < kv.padded; d += THREADS) {
            float x = d < kv.head_dim ? src[d] : 0;
            if (kv.is_half)
                static_cast<uint16_t *>(kv.data)[at + d] = (uint16_t)to_half(x);
            else
                static_cast<float *>(kv.data)[at + d] = x;
        }
    }
}

cudaError_t kv_store_run(const struct kv_pool *kv, const struct batch_tables *batch, const float *k,
                         const float *v, int n, cudaStream_t stream) {
    dim3 grid((unsigned)n, (unsigned)kv->n_kv_heads);
    return gpu_launch(store_kernel, grid, THREADS, 0, stream, *kv, *batch, k, v);
}

/* A block has a head of a token: of q, then of k, then of v. The same arithmetic as rope_kernel. */
static __global__ void __launch_bounds__(THREADS) rope_store_kernel(struct rope_store_args a) {
    kernel_begin();
    int token = (int)blockIdx.x, n_kv = a.kv.n_kv_heads, dim = a.kv.head_dim;
    int head = (int)blockIdx.y, which = head < a.n_heads ? 0 : head < a.n_heads + n_kv ? 1 : 2;
    int own = which == 0 ? head : which == 1 ? head - a.n_heads : head - a.n_heads - n_kv;
    size_t from = ((size_t)token * (size_t)(which ? n_kv : a.n_heads) + (size_t)own) * (size_t)dim;
    float *x = (which ? a.k : a.q) + from;
    const float *row = a.angles + (size_t)token * 2 * (size_t)a.n_freq;
    if (which < 2)
        for (int f = (int)threadIdx.x; f < a.n_freq; f += (int)blockDim.x) {
            float x0 = x[f], x1 = x[f + a.n_freq], c = row[f], s = row[f + a.n_freq];
            x[f] = fmaf(x0, c, -x1 * s);
            x[f + a.n_freq] = fmaf(x1, c, x0 * s);
        }
    if (which == 0) return;
    block_sync();
    const float *src = which == 1 ? x : a.v + from;
    size_t at = row_of(a.kv, a.batch, token, a.batch.positions[token], own, which - 1);
    for (int d = (int)threadIdx.x; d < a.kv.padded; d += (int)blockDim.x) {
        float v = d < dim ? src[d] : 0;
        if (a.kv.is_half)
            static_cast<uint16_t *>(a.kv.data)[at + d] = (uint16_t)to_half(v);
        else
            static_cast<float *>(a.kv.data)[at + d] = v;
    }
}

cudaError_t rope_store_run(const struct rope_store_args *a, int n, cudaStream_t stream) {
    dim3 grid((unsigned)n, (unsigned)(a->n_heads + 2 * a->kv.n_kv_heads));
    return gpu_launch(rope_store_kernel, grid, a->kv.head_dim <= 64 ? 32 : 64, 0, stream, *a);
}

/* Eight numbers of a row. */
template <bool HALVES>
static __device__ __forceinline__ void load_eight(float out[8], const void *data, size_t at) {
    if (HALVES) {
        uint4 v = *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(data) + at);
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = from_half(w[i] & 0xffffu);
            out[2 * i + 1] = from_half(w[i] >> 16);
        }
        return;
    }
    const float4 *p = reinterpret_cast<const float4 *>(static_cast<const float *>(data) + at);
    float4 a = p[0], b = p[1];
    out[0] = a.x;
    out[1] = a.y;
    out[2] = a.z;
    out[3] = a.w;
    out[4] = b.x;
    out[5] = b.y;
    out[6] = b.z;
    out[7] = b.w;
}

/* A piece of one token's context for up to HEADS heads that share keys: scores of all its positions,
 * their softmax, the weighted sum of values. */
template <bool HALVES>
static __global__ void __launch_bounds__(THREADS) piece_kernel(struct attention_args a) {
    kernel_begin();
    SHARED_ARRAY(float, query, HEADS *MAX_HEAD_DIM);
    SHARED_ARRAY(float, score, HEADS *SPLIT);
    SHARED_ARRAY(float, partial, HEADS *THREADS * 8);
    SHARED_ARRAY(int, block_of, SPLIT / KV_TOKENS);
    SHARED_ARRAY(float, top, HEADS);
    SHARED_ARRAY(float, total, HEADS);
    const struct kv_pool &kv = a.kv;
    int per_kv = a.n_heads / kv.n_kv_heads, groups = (per_kv + HEADS - 1) / HEADS;
    int token = a.first_token + (int)blockIdx.x, kv_head = (int)blockIdx.y / groups;
    int in_group = (int)blockIdx.y % groups * HEADS;
    int head0 = kv_head * per_kv + in_group;
    int n_heads = per_kv - in_group < HEADS ? per_kv - in_group : HEADS;
    int pos = a.batch.positions[token];
    int first = first_seen(a.window, pos);
    int start = (int)blockIdx.z * SPLIT, begin = first > start ? first : start;
    int end = pos + 1 < start + SPLIT ? pos + 1 : start + SPLIT, n = end - begin;
    if (n <= 0) return; /* the whole block */
    int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32;
    for (int i = thread; i < HEADS * kv.padded; i += THREADS) {
        int h = i / kv.padded, d = i % kv.padded;
        size_t at = ((size_t)token * (size_t)a.n_heads + (size_t)(head0 + h)) * (size_t)kv.head_dim;
        query[h * kv.padded + d] = h < n_heads && d < kv.head_dim ? a.q[at + d] : 0;
    }
    for (int i = thread; i < SPLIT / KV_TOKENS && start + i * KV_TOKENS < end; i += THREADS)
        block_of[i] = blocks_of(a.batch, token)[start / KV_TOKENS + i];
    block_sync();

    constexpr int KEYS = 32 / LANES_FOR_KEY;
    for (int base = warp * KEYS; base < n; base += WARPS_IN_BLOCK * KEYS) {
        int i = base + lane / LANES_FOR_KEY;
        float dot[HEADS] = {0, 0, 0, 0};
        if (i < n) {
            int at = begin + i;
            size_t row = row_in(kv, block_of[(at - start) / KV_TOKENS], at, kv_head, 0);
            for (int d = lane % LANES_FOR_KEY * 8; d < kv.padded; d += LANES_FOR_KEY * 8) {
                float key[8];
                load_eight<HALVES>(key, kv.data, row + d);
#pragma unroll
                for (int h = 0; h < HEADS; h++)
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        dot[h] = fmaf(query[h * kv.padded + d + j], key[j], dot[h]);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            for (int step = LANES_FOR_KEY / 2; step; step /= 2) dot[h] += warp_xor(dot[h], step);
            float s = dot[h] * a.scale;
            if (a.slopes && h < n_heads) s += a.slopes[head0 + h] * (float)(begin + i - pos);
            if (i < n && lane % LANES_FOR_KEY == h) score[h * SPLIT + i] = s;
        }
    }
    block_sync();

    for (int h = warp; h < n_heads; h += WARPS_IN_BLOCK) {
        float most = -INFINITY, sum = 0;
        for (int i = lane; i < n; i += 32) most = fmaxf(most, score[h * SPLIT + i]);
        for (int step = 16; step; step /= 2) most = fmaxf(most, warp_xor(most, step));
        for (int i = lane; i < n; i += 32) {
            float p = expf(score[h * SPLIT + i] - most);
            score[h * SPLIT + i] = p;
            sum += p;
        }
        for (int step = 16; step; step /= 2) sum += warp_xor(sum, step);
        if (lane == 0) {
            top[h] = most;
            total[h] = sum;
        }
    }
    block_sync();

    /* Eight dimensions for a thread; as many threads as a row needs take each position. */
    int wide = kv.padded <= 64 ? 8 : kv.padded <= 128 ? 16 : 32;
    int sets = THREADS / wide, set = thread / wide, d = thread % wide * 8;
    float sum[HEADS][8];
#pragma unroll
    for (int i = 0; i < HEADS * 8; i++) sum[i / 8][i % 8] = 0;
    if (d < kv.padded) {
#pragma unroll 4
        for (int i = set; i < n; i += sets) {
            float value[8];
            int at = begin + i;
            load_eight<HALVES>(value, kv.data,
                               row_in(kv, block_of[(at - start) / KV_TOKENS], at, kv_head, 1) +
                                   (size_t)d);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float p = h < n_heads ? score[h * SPLIT + i] : 0;
#pragma unroll
                for (int j = 0; j < 8; j++) sum[h][j] = fmaf(p, value[j], sum[h][j]);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int j = 0; j < 8; j++) partial[(h * sets + set) * wide * 8 + d + j] = sum[h][j];
    }
    block_sync();
    for (int i = thread; i < n_heads * kv.padded; i += THREADS) {
        int h = i / kv.padded, dim = i % kv.padded;
        float v = 0;
        for (int s = 0; s < sets; s++) v += partial[(h * sets + s) * wide * 8 + dim];
        size_t head = (size_t)(head0 + h);
        if (a.n_splits == 1) {
            if (dim < kv.head_dim)
                a.dst[((size_t)token * (size_t)a.n_heads + head) * (size_t)kv.head_dim + dim] =
                    v / total[h];
            continue;
        }
        float *piece = piece_of(a, token, (int)head, (int)blockIdx.z);
        piece[dim] = v;
        if (dim == 0) {
            piece[kv.padded] = top[h];
            piece[kv.padded + 1] = total[h];
        }
    }
}

/* Puts pieces together in order, THREADS of them at a time: the largest score up to each, by a scan,
 * gives each its factors. */
static __global__ void __launch_bounds__(THREADS) merge_kernel(struct attention_args a) {
    kernel_begin();
    SHARED_ARRAY(float, most, THREADS);
    SHARED_ARRAY(float, old, THREADS);
    SHARED_ARRAY(float, next, THREADS);
    int token = a.first_token + (int)blockIdx.x, head = (int)blockIdx.y, stride = a.kv.padded + 2;
    int pos = a.batch.positions[token], thread = (int)threadIdx.x, d = thread;
    int s0 = first_seen(a.window, pos) / SPLIT, s1 = pos / SPLIT + 1;
    const float *pieces = piece_of(a, token, head, 0);
    float sum = 0, total = 0, before = -INFINITY; /* the largest score of the rounds before */
    for (int first = s0; first < s1; first += THREADS) {
        int n = s1 - first < THREADS ? s1 - first : THREADS;
        float own = -INFINITY;
        if (thread < n) own = pieces[(size_t)(first + thread) * (size_t)stride + a.kv.padded];
        float largest = fmaxf(own, before);
        for (int step = 1; step < THREADS; step *= 2) {
            most[thread] = largest;
            block_sync();
            if (thread >= step) largest = fmaxf(largest, most[thread - step]);
            block_sync();
        }
        most[thread] = largest;
        block_sync();
        if (thread < n) {
            old[thread] = expf((thread ? most[thread - 1] : before) - largest);
            next[thread] = expf(own - largest);
        }
        before = most[n - 1];
        block_sync();
        if (d < a.kv.head_dim)
#pragma unroll 8
            for (int s = 0; s < n; s++) {
                const float *piece = pieces + (size_t)(first + s) * (size_t)stride;
                sum = combined(sum, old[s], piece[d], next[s]);
                total = combined(total, old[s], piece[a.kv.padded + 1], next[s]);
            }
        block_sync(); /* the factors have been read */
    }
    if (d < a.kv.head_dim)
        a.dst[((size_t)token * (size_t)a.n_heads + (size_t)head) * (size_t)a.kv.head_dim +
              (size_t)d] = sum / total;
}

cudaError_t attention_merge_run(const struct attention_args *a, int n, cudaStream_t stream) {
    dim3 grid((unsigned)n, (unsigned)a->n_heads);
    return gpu_launch(merge_kernel, grid, THREADS, 0, stream, *a);
}

cudaError_t attention_run(const struct attention_args *a, int n, cudaStream_t stream) {
    int per_kv = a->n_heads / a->kv.n_kv_heads, groups = (per_kv + HEADS - 1) / HEADS;
    dim3 grid((unsigned)n, (unsigned)(a->kv.n_kv_heads * groups), (unsigned)a->n_splits);
    cudaError_t rc = a->kv.is_half ? gpu_launch(piece_kernel<true>, grid, THREADS, 0, stream, *a)
                                   : gpu_launch(piece_kernel<false>, grid, THREADS, 0, stream, *a);
    if (rc != cudaSuccess || a->n_splits == 1) return rc;
    return attention_merge_run(a, n, stream);
}
