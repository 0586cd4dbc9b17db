/* A block has a token. Threads take four inputs at a time, the same ones in every pass, and sums meet
 * in an order that the width alone decides. */
#include "kernels/cuda/pack_input.h"

#include "kernels/cuda/ptx.h"

enum {
    MOST_THREADS = 1024,
    TOP = 13, /* the largest |x| of a token lies in [2^13, 2^14) */
    PAD =
        4, /* floats after each 16 in shared memory: threads that read groups meet no bank twice */
    FREE = 48 << 10 /* bytes of shared memory that need not be asked for */
};

static __device__ __forceinline__ float power_of_two(int e) {
    return __int_as_float((e + 127) << 23);
}

/* The power of two that x is multiplied with. NaN and infinity leave x as it is: the token's
 * results will not be finite either way. */
static __device__ __forceinline__ int scale_of(float largest) {
    int e = (__float_as_int(largest) >> 23 & 255) - 127;
    if (e == 128 || largest == 0) return 0;
    return TOP - e < 126 ? TOP - e : 126;
}

/* As fmaxf() but for NaN, which wins. */
static __device__ __forceinline__ float larger(float a, float b) { return b <= a ? a : b; }

static __device__ float largest_of_block(float v) {
    SHARED_ARRAY(float, each, MOST_THREADS / 32);
    for (int step = 16; step; step /= 2) v = larger(v, warp_xor(v, step));
    if (threadIdx.x % 32 == 0) each[threadIdx.x / 32] = v;
    block_sync(); /* also: every thread has left its inputs */
    for (int i = 0; i < (int)blockDim.x / 32; i++) v = larger(v, each[i]);
    return v;
}

/* The sum over the block, in one order; every thread gets it. */
static __device__ float sum_of_block(float v) {
    SHARED_ARRAY(float, each, MOST_THREADS / 32);
    for (int step = 16; step; step /= 2) v += warp_xor(v, step);
    block_sync(); /* the last sum has been read */
    if (threadIdx.x % 32 == 0) each[threadIdx.x / 32] = v;
    block_sync();
    float sum = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++) sum += each[i];
    return sum;
}

/* Four numbers of a row from k on, zeros past its end. */
static __device__ __forceinline__ float4 load_four(const float *row, int k, int cols) {
    if (cols % 4 == 0) return k < cols ? *reinterpret_cast<const float4 *>(row + k) : float4{};
    float4 v = {};
    if (k < cols) v.x = row[k];
    if (k + 1 < cols) v.y = row[k + 1];
    if (k + 2 < cols) v.z = row[k + 2];
    if (k + 3 < cols) v.w = row[k + 3];
    return v;
}
static __device__ __forceinline__ void store_four(float *row, int k, int cols, float4 v) {
    if (cols % 4 == 0) {
        if (k < cols) *reinterpret_cast<float4 *>(row + k) = v;
        return;
    }
    if (k < cols) row[k] = v.x;
    if (k + 1 < cols) row[k + 1] = v.y;
    if (k + 2 < cols) row[k + 2] = v.z;
    if (k + 3 < cols) row[k + 3] = v.w;
}

/* The token's row where packing finds it. */
template <bool STAGED> struct input_row {
    float *data;
    int cols;
    static __device__ __forceinline__ int place(int k) { return k + k / 16 * PAD; }
    __device__ __forceinline__ float4 get(int k) const {
        if (STAGED) return *reinterpret_cast<const float4 *>(data + place(k));
        return load_four(data, k, cols);
    }
    __device__ __forceinline__ void put(int k, float4 v) const {
        if (STAGED) *reinterpret_cast<float4 *>(data + place(k)) = v;
    }
};

static __device__ __forceinline__ float gated(float x, float up) { return x / (1 + expf(-x)) * up; }

/* Makes the row, leaves it in dst and in `row`; returns the thread's largest |x|. */
template <int MADE, bool STAGED>
static __device__ __forceinline__ float make_row(const struct input_args &a,
                                                 const input_row<STAGED> &row, const float *x,
                                                 float *dst, const float *up, int cols, int end) {
    int each = 4 * (int)blockDim.x, k0 = 4 * (int)threadIdx.x;
    float mean = 0, scale = 1, largest = 0;
    if (MADE == INPUT_NORM && cols) {
        float sum = 0;
        if (a.b) {
            for (int k = k0; k < cols; k += each) {
                float4 v = load_four(x, k, cols);
                sum += (v.x + v.y) + (v.z + v.w);
            }
            mean = sum_of_block(sum) / (float)cols;
        }
        sum = 0;
        for (int k = k0; k < cols; k += each) {
            float4 v = load_four(x, k, cols);
            if (STAGED) row.put(k, v);
            float d[4] = {v.x - mean, v.y - mean, v.z - mean, v.w - mean};
            for (int i = 0; i < 4; i++)
                if (k + i < cols) sum = fmaf(d[i], d[i], sum);
        }
        scale = 1 / sqrtf(sum_of_block(sum) / (float)cols + a.eps);
    }
    for (int k = k0; k < end; k += each) {
        float4 v = float4{};
        if (k < cols && MADE == INPUT_NORM) {
            v = STAGED ? row.get(k) : load_four(x, k, cols);
            float4 w = load_four(a.w, k, cols), b = a.b ? load_four(a.b, k, cols) : float4{};
            v.x = (v.x - mean) * scale * w.x + b.x;
            v.y = (v.y - mean) * scale * w.y + b.y;
            v.z = (v.z - mean) * scale * w.z + b.z;
            v.w = (v.w - mean) * scale * w.w + b.w;
            if (k + 1 >= cols) v.y = 0;
            if (k + 2 >= cols) v.z = 0;
            if (k + 3 >= cols) v.w = 0;
            store_four(dst, k, cols, v);
        } else if (k < cols) {
            v = load_four(x, k, cols);
            if (MADE == INPUT_GATE) {
                float4 u = load_four(up, k, cols);
                v = float4{gated(v.x, u.x), gated(v.y, u.y), gated(v.z, u.z), gated(v.w, u.w)};
                store_four(dst, k, cols, v);
            }
        }
        if (STAGED) row.put(k, v);
        largest = larger(larger(largest, fabsf(v.x)), fabsf(v.y));
        largest = larger(larger(largest, fabsf(v.z)), fabsf(v.w));
    }
    return largest;
}

static __device__ __forceinline__ void split(float v, uint32_t *high, uint32_t *low) {
    *high = to_half(v);
    *low = to_half(v - from_half(*high));
}

/* x as products see it: scaled, and rounded to a half. */
static __device__ __forceinline__ float rounded(float x, float scale) {
    return from_half(to_half(x * scale));
}

/* Eight inputs of a lane, scaled: pair of steps and lane say which. */
template <bool STAGED>
static __device__ __forceinline__ uint4 pack_eight(const input_row<STAGED> &row, float scale,
                                                   enum pack_order order, int chunk, int pair,
                                                   int t) {
    int k = chunk * CHUNK + (order == PACK_SPREAD ? 32 * pair + 4 * t : 32 * t + 8 * pair);
    float4 v0 = row.get(k), v1 = row.get(order == PACK_SPREAD ? k + 16 : k + 4);
    float v[8] = {v0.x, v0.y, v0.z, v0.w, v1.x, v1.y, v1.z, v1.w};
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        /* The power of two of the bit that the weight is, see planes.cu. */
        float own = order == PACK_SPREAD ? scale * power_of_two(-((4 * pair + i) & 7)) : scale;
        w[i] = to_half(v[2 * i] * own) | to_half(v[2 * i + 1] * own) << 16;
    }
    return uint4{w[0], w[1], w[2], w[3]};
}

/* A lane's four words into four slabs, each of which has all lanes' words of a column together. */
static __device__ __forceinline__ void put_slabs(uint4 *slabs, uint4 v, size_t slab, int n_cols,
                                                 size_t token, int t) {
    uint32_t *to = reinterpret_cast<uint32_t *>(slabs + slab * (size_t)n_cols + token) + t;
    size_t pitch = (size_t)n_cols * 4;
    to[0] = v.x;
    to[pitch] = v.y;
    to[2 * pitch] = v.z;
    to[3 * pitch] = v.w;
}

template <bool STAGED>
static __device__ __forceinline__ float sum_of_16(const input_row<STAGED> &row, int k,
                                                  float scale) {
    float s = 0;
    for (int i = 0; i < 16; i += 4) {
        float4 v = row.get(k + i);
        s += rounded(v.x, scale);
        s += rounded(v.y, scale);
        s += rounded(v.z, scale);
        s += rounded(v.w, scale);
    }
    return s;
}

/* Sums of groups of 16 as columns, each as a half and what that lost; the chunks come in pairs; lane
 * t has groups 2t, 2t + 1 of both. */
template <bool STAGED>
static __device__ void pack_groups(const struct input_room &to, const input_row<STAGED> &row,
                                   float scale, int chunks, size_t token) {
    for (int i = (int)threadIdx.x; i < chunks * 2; i += (int)blockDim.x) {
        int t = i % 4, pair = i / 4;
        uint32_t high[2], low[2];
        for (int c = 0; c < 2; c++) {
            uint32_t h[2], l[2];
            int k = (pair * 2 + c) * CHUNK + 32 * t;
            for (int half = 0; half < 2; half++)
                split(sum_of_16(row, k + 16 * half, scale) * 0.0625f, &h[half], &l[half]);
            high[c] = h[0] | h[1] << 16;
            low[c] = l[0] | l[1] << 16;
        }
        uint4 v = uint4{high[0], high[1], low[0], low[1]};
        if (to.wide)
            put_slabs(to.group_cols, v, (size_t)pair * 4, to.n_cols, token, t);
        else
            to.group_cols[((size_t)pair * (size_t)to.n_cols + token) * 4 + t] = v;
    }
}

/* Sums of 16, 32, 64 and 128 inputs. */
template <bool STAGED>
static __device__ void pack_sums(const struct input_room &to, const input_row<STAGED> &row,
                                 float scale, int chunks, size_t token, size_t n) {
    for (int chunk = (int)threadIdx.x; chunk < chunks; chunk += (int)blockDim.x) {
        float s[8];
        for (int i = 0; i < 8; i++) {
            s[i] = sum_of_16(row, chunk * CHUNK + 16 * i, scale);
            to.sums[(size_t)(chunk * 8 + i) * n + token] = s[i];
        }
        float *up = to.sums + 8 * (size_t)chunks * n;
        for (int width = 4; width; width /= 2) {
            for (int i = 0; i < width; i++) {
                s[i] = s[2 * i] + s[2 * i + 1];
                up[(size_t)(chunk * width + i) * n + token] = s[i];
            }
            up += (size_t)width * (size_t)chunks * n;
        }
    }
}

template <int MADE, bool STAGED>
static __global__ void __launch_bounds__(MOST_THREADS) input_kernel(const struct input_args a) {
    kernel_begin();
    SHARED_DYNAMIC(float, staged);
    const struct input_room &to = a.to;
    int token = (int)blockIdx.x, chunks = (int)pack_chunks(a.cols);
    int cols = token < a.n ? a.cols : 0; /* past the batch: columns of zeros */
    size_t first = (size_t)(token < a.n ? token : 0) * (size_t)a.cols;
    input_row<STAGED> row;
    row.data = STAGED                ? staged
               : MADE == INPUT_AS_IS ? const_cast<float *>(a.x) + first
                                     : a.dst + first;
    row.cols = cols;
    float largest = make_row<MADE, STAGED>(
        a, row, a.x + first, MADE == INPUT_AS_IS ? NULL : a.dst + first,
        MADE == INPUT_GATE ? a.up + first : NULL, cols, STAGED ? chunks * CHUNK : cols);
    if (!to.columns) return;
    int e = scale_of(largest_of_block(largest));
    float scale = power_of_two(e);
    if (threadIdx.x == 0 && token < a.n) to.unscale[token] = power_of_two(-e);
    for (int i = (int)threadIdx.x; i < chunks * 16; i += (int)blockDim.x) {
        int t = i % 4, pair = i / 4 % 4, chunk = i / 16;
        uint4 v = pack_eight(row, scale, a.order, chunk, pair, t);
        size_t at = (size_t)(chunk * 4 + pair);
        if (to.wide)
            put_slabs(to.columns, v, at * 4, to.n_cols, (size_t)token, t);
        else
            to.columns[(at * (size_t)to.n_cols + (size_t)token) * 4 + t] = v;
    }
    if (a.order == PACK_OWNED)
        pack_groups(to, row, scale, chunks, (size_t)token);
    else if (token < a.n)
        pack_sums(to, row, scale, chunks_of(a.cols), (size_t)token, (size_t)a.n);
}

template <int MADE>
static cudaError_t launch(const struct input_args *a, size_t most, cudaStream_t stream) {
    size_t floats = pack_chunks(a->cols) * CHUNK, shared = (floats + floats / 16 * PAD) * 4;
    int threads = a->cols <= 512 ? 128 : a->cols <= 2048 ? 256 : a->cols <= 8192 ? 512 : 1024;
    dim3 grid((unsigned)(a->to.columns ? a->to.n_cols : a->n));
    /* A little is left for what the kernel has of its own. */
    if (shared + 512 > (most > (size_t)FREE ? most : (size_t)FREE))
        return gpu_launch(input_kernel<MADE, false>, grid, threads, 0, stream, *a);
    return gpu_launch(input_kernel<MADE, true>, grid, threads, shared, stream, *a);
}

cudaError_t input_run(const struct input_args *a, size_t shared, cudaStream_t stream) {
    return a->made == INPUT_NORM   ? launch<INPUT_NORM>(a, shared, stream)
           : a->made == INPUT_GATE ? launch<INPUT_GATE>(a, shared, stream)
                                   : launch<INPUT_AS_IS>(a, shared, stream);
}
