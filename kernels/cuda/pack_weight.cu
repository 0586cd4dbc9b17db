/* One thread makes what one lane of a product will load from a unit. */
#include "kernels/cuda/pack_weight.h"

enum { THREADS = 128 };

/* Field i of a packed row. */
static __device__ __forceinline__ uint32_t field(const uint8_t *fields, int width, int i) {
    int bit = i * width, shift = bit % 8;
    uint32_t v = fields[bit / 8];
    if (shift + width > 8) v |= (uint32_t)fields[bit / 8 + 1] << 8;
    return v >> shift & ((1u << width) - 1);
}

static __device__ __forceinline__ uint32_t plane_bit(const struct coded_matrix &m, int row, int i,
                                                     int k) {
    if (row >= m.rows || k >= m.cols) return 0;
    size_t words = ((size_t)m.cols + 31) / 32;
    return m.planes[((size_t)row * (size_t)m.bits + (size_t)i) * words + (size_t)(k / 32)] >>
               k % 32 &
           1u;
}

/* Unit and lane of a thread; false past the last. */
static __device__ __forceinline__ bool place_of(size_t n_units, size_t *unit, int *lane) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    *unit = i / 32;
    *lane = (int)(i % 32);
    return *unit < n_units;
}

/* Word w of a lane: a uint4 (or, at the end, uint2, uint32) of its own for each load. */
static __device__ __forceinline__ void put_vector(uint32_t *unit, int lane, int first, int width,
                                                  const uint32_t *words) {
    for (int i = 0; i < width; i++) unit[first * 32 + lane * width + i] = words[first + i];
}

static __global__ void __launch_bounds__(THREADS)
    compact_kernel(uint32_t *data, struct coded_matrix m) {
    kernel_begin();
    size_t unit;
    int lane, pairs = pairs_of(m.cols), bits = m.bits;
    if (!place_of((size_t)tiles_of(m.rows) * (size_t)pairs, &unit, &lane)) return;
    int tile = (int)(unit / (size_t)pairs), pair = (int)(unit % (size_t)pairs), t = lane % 4;
    uint32_t words[4 * 4 + 5];
    for (int i = 0; i < 21; i++) words[i] = 0;
    uint32_t *q = words + 4 * bits, *p = q + 1, *shape = p + 2;
    for (int c = 0; c < 2; c++) {
        for (int high = 0; high < 2; high++) {
            int row = tile * TILE_ROWS + lane / 4 + 8 * high, k0 = (2 * pair + c) * CHUNK + 32 * t;
            uint32_t *codes = words + (c * 2 + high) * bits;
            for (int i = 0; i < 32; i++) {
                int n = i / 8, nibble = i % 8 * 4; /* as compact_form::nibbles() finds them */
                for (int b = 0; b < bits; b++) {
                    int word = bits == 1 ? 0 : bits == 2 ? n / 2 : bits == 4 ? n : n < 3 ? n : b;
                    int bit = bits == 1            ? nibble + n
                              : bits == 2          ? nibble + n % 2 * 2 + b
                              : bits == 4 || n < 3 ? nibble + b
                                                   : nibble + 3;
                    codes[word] |= plane_bit(m, row, b, k0 + i) << bit;
                }
            }
            for (int group = 0; group < 2; group++) {
                int k = k0 + 16 * group, g = k / m.group, at = high * 2 + group;
                uint32_t qv = 0, pv = 128, sv = 0;
                if (row < m.rows && k < m.cols) {
                    qv = field(m.q + (size_t)row * m.q_stride, m.scale_bits, g);
                    uint32_t raw = field(m.p + (size_t)row * m.p_stride, m.bias_bits, g);
                    uint32_t half = 1u << (m.bias_bits - 1);
                    pv = (raw ^ half) - half + 128;
                    if (m.shapes) sv = field(m.shape + (size_t)row * m.idx_stride, m.shape_bits, g);
                }
                *q |= qv << (c * 16 + at * 4);
                p[c] |= pv << at * 8;
                if (m.shapes) shape[c] |= sv << at * 8;
            }
        }
    }
    uint32_t *to = data + unit * (size_t)(32 * compact_words(bits, m.shapes));
    for (int i = 0; i < bits; i++) put_vector(to, lane, 4 * i, 4, words);
    put_vector(to, lane, 4 * bits, 1, words);
    put_vector(to, lane, 4 * bits + 1, 2, words);
    if (m.shapes) put_vector(to, lane, 4 * bits + 3, 2, words);
}

static dim3 blocks_for(size_t n_units) {
    return dim3((unsigned)((n_units * 32 + THREADS - 1) / THREADS));
}

cudaError_t pack_compact(uint32_t *data, const struct coded_matrix *m, cudaStream_t stream) {
    size_t units = (size_t)tiles_of(m->rows) * (size_t)pairs_of(m->cols);
    return gpu_launch(compact_kernel, blocks_for(units), THREADS, 0, stream, data, *m);
}

static __global__ void __launch_bounds__(THREADS)
    planes_kernel(uint32_t *data, uint32_t *params, struct coded_matrix m, int steps) {
    kernel_begin();
    size_t unit;
    int lane, chunks = chunks_of(m.cols), bits = m.bits;
    if (!place_of((size_t)tiles_of(m.rows) * (size_t)chunks, &unit, &lane)) return;
    int tile = (int)(unit / (size_t)chunks), chunk = (int)(unit % (size_t)chunks);
    uint32_t words[8];
    for (int high = 0; high < 2; high++)
        for (int b = 0; b < bits; b++) {
            uint32_t w = 0;
            for (int i = 0; i < 32; i++) {
                int half = i / 16, s = i % 16 / 2, r = i % 2;
                int k = chunk * CHUNK + 16 * s + 4 * (lane % 4) + 2 * r + half;
                w |= plane_bit(m, tile * TILE_ROWS + lane / 4 + 8 * high, b, k) << i;
            }
            words[high * bits + b] = w;
        }
    uint32_t *to = data + unit * (size_t)(32 * planes_words(bits));
    int at = 0;
    for (; at + 4 <= 2 * bits; at += 4) put_vector(to, lane, at, 4, words);
    if (at < 2 * bits) put_vector(to, lane, at, 2, words);

    int stretches = STEPS / steps, each = (bits + 2) / 2;
    for (int i = lane; i < stretches * TILE_ROWS; i += 32) {
        int row = tile * TILE_ROWS + i % TILE_ROWS;
        int k = chunk * CHUNK + i / TILE_ROWS * steps * 16;
        uint32_t out[3] = {0, 0, 0};
        if (row < m.rows && k < m.cols) {
            size_t g = (size_t)row * (size_t)m.n_groups + (size_t)(k / m.group);
            for (int b = 0; b <= bits; b++)
                out[b / 2] |= (uint32_t)(b < bits ? m.alpha[g * (size_t)bits + b] : m.beta[g])
                              << 16 * (b % 2);
        }
        for (int w = 0; w < each; w++)
            params[(unit * (size_t)(stretches * TILE_ROWS) + (size_t)i) * (size_t)each + w] =
                out[w];
    }
}

cudaError_t pack_planes(uint32_t *data, uint32_t *params, const struct coded_matrix *m, int steps,
                        cudaStream_t stream) {
    size_t units = (size_t)tiles_of(m->rows) * (size_t)chunks_of(m->cols);
    return gpu_launch(planes_kernel, blocks_for(units), THREADS, 0, stream, data, params, *m,
                      steps);
}

static __global__ void __launch_bounds__(THREADS)
    halves_kernel(uint32_t *data, const uint16_t *src, int rows, int cols) {
    kernel_begin();
    size_t unit;
    int lane, chunks = chunks_of(cols);
    if (!place_of((size_t)tiles_of(rows) * (size_t)chunks, &unit, &lane)) return;
    int tile = (int)(unit / (size_t)chunks), chunk = (int)(unit % (size_t)chunks);
    for (int s = 0; s < STEPS; s++)
        for (int i = 0; i < 4; i++) { /* register of mma(): row, then input */
            uint32_t v = 0;
            for (int half = 0; half < 2; half++) {
                int row = tile * TILE_ROWS + lane / 4 + 8 * (i % 2);
                int k = chunk * CHUNK + 32 * (lane % 4) + 4 * s + 2 * (i / 2) + half;
                if (row < rows && k < cols)
                    v |= (uint32_t)src[(size_t)row * (size_t)cols + k] << 16 * half;
            }
            data[((unit * STEPS + (size_t)s) * 32 + (size_t)lane) * 4 + i] = v;
        }
}

cudaError_t pack_halves(uint32_t *data, const uint16_t *src, int rows, int cols,
                        cudaStream_t stream) {
    size_t units = (size_t)tiles_of(rows) * (size_t)chunks_of(cols);
    return gpu_launch(halves_kernel, blocks_for(units), THREADS, 0, stream, data, src, rows, cols);
}
