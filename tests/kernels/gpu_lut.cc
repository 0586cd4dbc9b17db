/* The kernel that tests/bench/gpu compares ours with, against loops in fp64: what is timed must be right. TAP. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "kernels/float16.h"
#include "tests/bench/gpu_lut.cu" /* the emulation has no other way to compile it */

namespace {

uint32_t state = 1;

uint32_t next() {
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}
float uniform() { return (float)(next() >> 8) * 0x1p-23f - 1.0f; }

cudaStream_t stream;

template <class T> T *on_device(const std::vector<T> &from) {
    void *to = NULL;
    size_t bytes = from.size() * sizeof(T);
    if (cudaMalloc(&to, bytes) != cudaSuccess) return NULL;
    cudaMemcpyAsync(to, from.data(), bytes, cudaMemcpyHostToDevice, stream);
    return static_cast<T *>(to);
}

struct problem {
    int rows, n_groups, bits;
    std::vector<uint32_t> planes;
    std::vector<uint16_t> params;
    std::vector<float> x;
};

struct problem random_problem(int rows, int n_groups, int bits) {
    struct problem p = {rows, n_groups, bits, {}, {}, {}};
    p.planes.resize(gpu_lut_plane_words(rows, n_groups, bits));
    p.params.resize(gpu_lut_params(rows, n_groups, bits));
    p.x.resize((size_t)n_groups * GPU_LUT_GROUP);
    for (uint32_t &v : p.planes) v = next();
    for (uint16_t &v : p.params) v = f32_to_f16(uniform());
    for (float &v : p.x) v = uniform();
    return p;
}

double weight(const struct problem &p, int row, int k) {
    int group = k / GPU_LUT_GROUP, word = k % GPU_LUT_GROUP / 32;
    size_t rows = (size_t)p.rows, params = (size_t)group * (size_t)(p.bits + 1);
    double w = f16_to_f32(p.params[(params + (size_t)p.bits) * rows + (size_t)row]);
    for (int i = 0; i < p.bits; i++) {
        size_t at = ((size_t)(group * 4 + word) * (size_t)p.bits + (size_t)i) * rows + (size_t)row;
        double alpha = f16_to_f32(p.params[(params + (size_t)i) * rows + (size_t)row]);
        w += p.planes[at] >> k % 32 & 1 ? alpha : -alpha;
    }
    return w;
}

bool is_right(const struct problem &p, const std::vector<float> &y) {
    for (int row = 0; row < p.rows; row++) {
        double sum = 0, size = 0;
        for (size_t k = 0; k < p.x.size(); k++) {
            double term = weight(p, row, (int)k) * p.x[k];
            sum += term;
            size += fabs(term);
        }
        double off = fabs(sum - (double)y[(size_t)row]);
        if (!(off <= 1e-6 * size)) {
            printf("# row %d: %.9g, not %.9g\n", row, (double)y[(size_t)row], sum);
            return false;
        }
    }
    return true;
}

bool run(const struct problem &p) {
    std::vector<float> y((size_t)p.rows, NAN), parts(y.size() * (size_t)p.n_groups, NAN);
    float *x = on_device(p.x), *device_y = on_device(y), *device_parts = on_device(parts);
    struct gpu_lut_matrix m = {on_device(p.planes), on_device(p.params), p.rows, p.n_groups,
                               p.bits};
    bool good = gpu_lut_run(&m, x, device_parts, device_y, stream) == cudaSuccess;
    cudaMemcpyAsync(y.data(), device_y, y.size() * sizeof(float), cudaMemcpyDeviceToHost, stream);
    good = cudaStreamSynchronize(stream) == cudaSuccess && good;
    for (const void *q : {(const void *)x, (const void *)device_y, (const void *)device_parts,
                          (const void *)m.planes, (const void *)m.params})
        cudaFree(const_cast<void *>(q));
    return good && is_right(p, y);
}

} // namespace

int main() {
    const int shapes[][2] = {{7, 1}, {256, 2}, {300, 3}, {GPU_LUT_ROWS, 1}, {GPU_LUT_ROWS + 33, 2}};
    int bad = 0, number = 0;
    if (cudaStreamCreate(&stream) != cudaSuccess) return 1;
    printf("1..%d\n", (int)(sizeof shapes / sizeof *shapes) * GPU_LUT_MAX_BITS);
    for (const auto &shape : shapes) {
        for (int bits = 1; bits <= GPU_LUT_MAX_BITS; bits++) {
            bool good = run(random_problem(shape[0], shape[1], bits));
            bad += !good;
            printf("%sok %d - %d rows of %d inputs, %d bits\n", good ? "" : "not ", ++number,
                   shape[0], shape[1] * GPU_LUT_GROUP, bits);
        }
    }
    cudaStreamDestroy(stream);
    return bad != 0;
}
