/* Times the GPU back end's kernels: gpu_bench [--quick | --ways | --profile]. A line per case, CSV on
 * stdout; see gpu. --ways: every launch that a product could take, beside the one it takes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/pack_weight.h"
#include "kernels/cuda/plugin.h"
#include "tests/bench/gpu_cublas.h"
#include "tests/bench/gpu_lut.h"

extern "C" const struct gpu_plugin *gptqt_gpu_plugin(void);

static struct backend *be;
static struct gpu *gpu;
static double copy_gbs;

static void must(cudaError_t code, const char *what) {
    if (code == cudaSuccess) return;
    fprintf(stderr, "gpu_bench: %s: %s\n", what, cudaGetErrorString(code));
    exit(1);
}

static __global__ void fill_kernel(uint32_t *p, size_t n, uint32_t seed, uint32_t keep,
                                   uint32_t set) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u ^ seed;
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        p[i] = (x & keep) | set;
    }
}

/* Random words: bits outside keep are set's. */
static void *random_words(size_t bytes, uint32_t keep, uint32_t set) {
    static uint32_t seed = 1;
    void *p = NULL;
    must(cudaMalloc(&p, bytes + 64), "cudaMalloc");
    fill_kernel<<<1024, 256, 0, gpu->stream>>>((uint32_t *)p, bytes / 4, seed++ * 977u, keep, set);
    must(cudaGetLastError(), "fill");
    return p;
}
/* Floats of about +-1..2 and halves of about +-1. */
static float *random_floats(size_t n) {
    return (float *)random_words(n * 4, 0x807fffffu, 0x3f800000u);
}
static void *random_halves(size_t n) { return random_words(n * 2, 0x83ff83ffu, 0x38003800u); }

static struct weight *random_weight(enum weight_form form, int bits, int rows, int cols) {
    struct weight *w = (struct weight *)calloc(1, sizeof *w);
    size_t tiles = (size_t)tiles_of(rows);
    w->rows = rows;
    w->cols = cols;
    w->kind.form = form;
    w->kind.bits = bits;
    if (form == FORM_COMPACT) {
        w->bytes = tiles * (size_t)pairs_of(cols) * 32 * (size_t)compact_words(bits, false) * 4;
        w->data = random_words(w->bytes, ~0u, 0);
        w->levels = random_words(tiles * 16 * 16, 0x7f7f7f7fu, 0);
        w->scales = random_floats((size_t)rows * 2);
    } else if (form == FORM_PLANES) {
        w->kind.steps = 8;
        size_t params = tiles * (size_t)chunks_of(cols) * 16 * (size_t)param_words(bits) * 4;
        w->bytes = tiles * (size_t)chunks_of(cols) * 32 * (size_t)planes_words(bits) * 4;
        w->data = random_words(w->bytes, ~0u, 0);
        w->params = random_words(params, 0x83ff83ffu, 0x2c002c00u);
        w->bytes += params;
    } else {
        w->bytes = tiles * (size_t)chunks_of(cols) * 4096;
        w->data = random_halves(w->bytes / 2);
    }
    return w;
}

static struct buffer *random_buffer(size_t n) {
    struct buffer *b = (struct buffer *)calloc(1, sizeof *b);
    b->n = n;
    b->data = random_floats(n);
    return b;
}

static void begin(int n, int n_seqs, int from, int max_blocks) {
    std::vector<int32_t> tokens((size_t)n), positions((size_t)n), seqs((size_t)n),
        blocks((size_t)n_seqs * (size_t)max_blocks);
    for (int t = 0; t < n; t++) {
        seqs[(size_t)t] = t % n_seqs;
        positions[(size_t)t] = from + t / n_seqs;
    }
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = (int32_t)(i * 7919 % blocks.size());
    struct batch b = {n,           n_seqs,        tokens.data(), positions.data(),
                      seqs.data(), blocks.data(), max_blocks};
    backend_begin(be, &b);
}

/* Median seconds of one of `each` things that run() queues, by events around graph replays. */
template <class F> static double time_of(int each, F run) {
    struct error err;
    run(); /* sizes rooms, loads code */
    if (backend_sync(be, &err)) {
        fprintf(stderr, "gpu_bench: %s\n", err.text);
        exit(1);
    }
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeRelaxed), "capture");
    run();
    queue_flush(gpu);
    must(cudaStreamEndCapture(gpu->stream, &graph), "end of capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    cudaEvent_t e0, e1;
    cudaEventCreate(&e0);
    cudaEventCreate(&e1);
    std::vector<float> ms;
    double spent = 0;
    for (int i = 0; i < 23 && (i < 5 || spent < 60); i++) {
        float t;
        cudaEventRecord(e0, gpu->stream);
        must(cudaGraphLaunch(exec, gpu->stream), "graph");
        cudaEventRecord(e1, gpu->stream);
        must(cudaEventSynchronize(e1), "event");
        cudaEventElapsedTime(&t, e0, e1);
        if (i > 1) ms.push_back(t);
        spent += t;
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(e0);
    cudaEventDestroy(e1);
    std::sort(ms.begin(), ms.end());
    return (double)ms[ms.size() / 2] / 1e3 / each;
}

static void bench_copy() {
    size_t bytes = (size_t)1 << 30;
    void *a = random_words(bytes, ~0u, 0), *b = random_words(bytes, ~0u, 0);
    double s = time_of(4, [&]() {
        for (int i = 0; i < 4; i++)
            cudaMemcpyAsync(i % 2 ? a : b, i % 2 ? b : a, bytes, cudaMemcpyDeviceToDevice,
                            gpu->stream);
    });
    copy_gbs = 2 * (double)bytes / s / 1e9;
    printf("copy,1 GiB,,,%.1f,us,%.0f,GB/s read+written\n", s * 1e6, copy_gbs);
    cudaFree(a);
    cudaFree(b);
}

static const char *name_of(enum weight_form form) {
    return form == FORM_COMPACT ? "compact16" : form == FORM_PLANES ? "free128" : "fp16";
}

/* Copies enough that each is out of the second cache when its turn comes. */
static void bench_linear(enum weight_form form, int bits, int rows, int cols,
                         const std::vector<int> &batches) {
    std::vector<struct weight *> w;
    w.push_back(random_weight(form, bits, rows, cols));
    size_t copies = std::min<size_t>(48, std::max<size_t>(4, ((size_t)240 << 20) / w[0]->bytes));
    while (w.size() < copies) w.push_back(random_weight(form, bits, rows, cols));
    for (int n : batches) {
        struct buffer *x = random_buffer((size_t)n * (size_t)cols);
        struct buffer *y = random_buffer((size_t)n * (size_t)rows);
        begin(n, 1, 0, n / 16 + 1);
        int each = n > 64 ? 4 : (int)w.size();
        double s = time_of(each, [&]() {
            for (int i = 0; i < each; i++) {
                struct linear_call c = {y, w[(size_t)i], NULL, ACT_NONE, false};
                backend_linear(be, &c, 1, x);
            }
        });
        double gbs = (double)w[0]->bytes / s / 1e9;
        printf("%s,%dx%d,m%d,n%d,%.2f,us,%.0f,GB/s,%.1f,%% of copy,%.1f,TFLOP/s\n", name_of(form),
               rows, cols, bits, n, s * 1e6, gbs, 100 * gbs / copy_gbs,
               2e-12 * rows * (double)cols * n / s);
        fflush(stdout);
        cudaFree(x->data);
        cudaFree(y->data);
        free(x);
        free(y);
    }
    for (struct weight *p : w) gpu_weight_free(be, p);
}

/* One token by tables in shared memory, on matrices of the size of free128's. */
static void bench_lut(int bits, int rows, int cols) {
    int n_groups = cols / GPU_LUT_GROUP;
    size_t words = gpu_lut_plane_words(rows, n_groups, bits);
    size_t params = gpu_lut_params(rows, n_groups, bits), bytes = words * 4 + params * 2;
    size_t copies = std::min<size_t>(48, std::max<size_t>(4, ((size_t)240 << 20) / bytes));
    std::vector<struct gpu_lut_matrix> w;
    while (w.size() < copies)
        w.push_back({(const uint32_t *)random_words(words * 4, ~0u, 0),
                     (const uint16_t *)random_halves(params), rows, n_groups, bits});
    float *x = random_floats((size_t)cols), *y = random_floats((size_t)rows);
    float *parts = random_floats((size_t)rows * (size_t)n_groups);
    double s = time_of((int)copies, [&]() {
        for (const struct gpu_lut_matrix &m : w)
            must(gpu_lut_run(&m, x, parts, y, gpu->stream), "LUT-GEMM");
    });
    double gbs = (double)bytes / s / 1e9;
    printf("lut-gemm-like128,%dx%d,m%d,n1,%.2f,us,%.0f,GB/s,%.1f,%% of copy\n", rows, cols, bits,
           s * 1e6, gbs, 100 * gbs / copy_gbs);
    fflush(stdout);
    for (const struct gpu_lut_matrix &m : w) {
        cudaFree((void *)m.planes);
        cudaFree((void *)m.params);
    }
    for (float *p : {x, y, parts}) cudaFree(p);
}

static void bench_cublas(int rows, int cols, const std::vector<int> &batches) {
    static struct gpu_cublas cublas;
    static bool open = gpu_cublas_open(&cublas, gpu->stream);
    if (!open) return;
    size_t bytes = (size_t)rows * (size_t)cols * 2;
    size_t copies = std::max<size_t>(4, ((size_t)240 << 20) / bytes);
    std::vector<void *> w;
    while (w.size() < copies) w.push_back(random_halves((size_t)rows * (size_t)cols));
    for (int n : batches) {
        void *x = random_halves((size_t)n * (size_t)cols),
             *y = random_halves((size_t)n * (size_t)rows);
        int each = n > 64 ? 4 : (int)w.size();
        double s = time_of(each, [&]() {
            for (int i = 0; i < each; i++)
                gpu_cublas_product(&cublas, rows, n, cols, w[(size_t)i], x, y);
        });
        printf("cublas-fp16,%dx%d,,n%d,%.2f,us,%.0f,GB/s,%.1f,%% of copy,%.1f,TFLOP/s\n", rows,
               cols, n, s * 1e6, (double)bytes / s / 1e9, 100 * (double)bytes / s / 1e9 / copy_gbs,
               2e-12 * rows * (double)cols * n / s);
        fflush(stdout);
        cudaFree(x);
        cudaFree(y);
    }
    for (void *p : w) cudaFree(p);
}

static void bench_attention(int n_seqs, int context, int n, int heads, int kv_heads, int dim) {
    int max_blocks = (context + n) / 16 + 1;
    struct kv_spec spec = {1, kv_heads, dim, n_seqs * max_blocks, DTYPE_F16};
    struct kv *kv = NULL;
    struct error err;
    if (backend_kv_new(be, &kv, &spec, &err)) {
        fprintf(stderr, "gpu_bench: %s\n", err.text);
        exit(1);
    }
    cudaFree(kv->pool.data);
    kv->pool.data = random_halves(kv->layer_bytes / 2);
    size_t tokens = (size_t)n * (size_t)n_seqs, width = (size_t)heads * (size_t)dim;
    struct buffer *q = random_buffer(tokens * width), *dst = random_buffer(tokens * width);
    begin((int)tokens, n_seqs, context, max_blocks);
    struct attention_call call = {dst, q, kv, 0, heads, 0, 0.088f, NULL};
    double s = time_of(4, [&]() {
        for (int i = 0; i < 4; i++) backend_attention(be, &call);
    });
    double bytes = 4.0 * kv_heads * dim * n_seqs * (context + n);
    double flops = 4.0 * heads * dim * (double)tokens * (context + 0.5 * n);
    printf("attention,%d seqs x %d new at %d,heads %d/%d,dim %d,%.2f,us,%.0f,GB/s,%.1f,%% of "
           "copy,%.2f,TFLOP/s\n",
           n_seqs, n, context, heads, kv_heads, dim, s * 1e6, bytes / s / 1e9,
           100 * bytes / s / 1e9 / copy_gbs, flops / s / 1e12);
    fflush(stdout);
    cudaFree(q->data);
    cudaFree(dst->data);
    free(q);
    free(dst);
    backend_kv_free(be, kv);
}

static void bench_small(int dim) {
    for (int n : {1, 32}) {
        struct buffer *x = random_buffer((size_t)n * (size_t)dim), *y = random_buffer(x->n);
        struct weight *w = (struct weight *)calloc(1, sizeof *w);
        w->data = random_floats((size_t)dim);
        begin(n, 1, 0, n / 16 + 1);
        struct norm_call call = {w, NULL, dim, 1e-5f};
        double s = time_of(50, [&]() {
            for (int i = 0; i < 50; i++) backend_norm(be, y, x, &call);
        });
        printf("norm,%d,,n%d,%.2f,us\n", dim, n, s * 1e6);
        s = time_of(50, [&]() {
            for (int i = 0; i < 50; i++) backend_gate(be, y, x, dim);
        });
        printf("gate,%d,,n%d,%.2f,us\n", dim, n, s * 1e6);
        cudaFree(x->data);
        cudaFree(y->data);
        free(x);
        free(y);
        gpu_weight_free(be, w);
    }
}

/* Seconds of a product with n tokens, launched as the environment says. */
static double way_time(const std::vector<struct weight *> &w, int n, const char *way) {
    if (way)
        setenv("GPTQT_GPU_WAY", way, 1);
    else
        unsetenv("GPTQT_GPU_WAY");
    struct buffer *x = random_buffer((size_t)n * (size_t)w[0]->cols);
    struct buffer *y = random_buffer((size_t)n * (size_t)w[0]->rows);
    begin(n, 1, 0, n / 16 + 1);
    int each = n > 64 ? 4 : 16;
    double s = time_of(each, [&]() {
        for (int i = 0; i < each; i++) {
            struct linear_call c = {y, w[(size_t)i % w.size()], NULL, ACT_NONE, false};
            backend_linear(be, &c, 1, x);
        }
    });
    unsetenv("GPTQT_GPU_WAY");
    cudaFree(x->data);
    cudaFree(y->data);
    free(x);
    free(y);
    return s * 1e6;
}

static void bench_ways(enum weight_form form, int bits, int rows, int cols) {
    static const char *const ways[] = {"few", "many", "wide32", "wide64", "wide128"};
    std::vector<struct weight *> w;
    while (w.size() < 8) w.push_back(random_weight(form, bits, rows, cols));
    for (int n : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048}) {
        printf("ways,%s,%dx%d,m%d,n%d,chosen,%.1f", name_of(form), rows, cols, bits, n,
               way_time(w, n, NULL));
        for (const char *way : ways)
            if (n > 8) printf(",%s,%.1f", way, way_time(w, n, way));
        printf("\n");
        fflush(stdout);
    }
    for (struct weight *p : w) gpu_weight_free(be, p);
}

static void bench_all_ways() {
    const int shapes[][2] = {{4096, 4096}, {11008, 4096}, {4096, 11008}, {22016, 4096}};
    const std::vector<int> counts = {1, 8, 16, 32, 64, 128, 256, 512, 2048};
    for (int s = 0; s < 4; s++) {
        bench_ways(FORM_COMPACT, 3, shapes[s][0], shapes[s][1]);
        bench_cublas(shapes[s][0], shapes[s][1], counts);
    }
    bench_ways(FORM_COMPACT, 2, 11008, 4096);
    bench_ways(FORM_COMPACT, 4, 11008, 4096);
    bench_ways(FORM_HALVES, 0, 11008, 4096);
    bench_attention(1, 512, 1, 32, 8, 128);
    bench_attention(1, 512, 1, 32, 32, 128);
    bench_attention(32, 512, 1, 32, 32, 128);
    bench_attention(1, 4096, 1, 32, 8, 128);
    bench_attention(1, 32768, 1, 32, 8, 128);
    bench_attention(1, 0, 512, 32, 32, 128);
    bench_small(4096);
    bench_small(11008);
}

int main(int argc, char **argv) {
    bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    bool profile = argc > 1 && !strcmp(argv[1], "--profile");
    struct error err;
    if (gptqt_gpu_plugin()->open(&be, 1, &err))
        return fprintf(stderr, "gpu_bench: %s\n", err.text), 1;
    gpu = gpu_of(be);
    gpu->queue.plain = true; /* what is timed is captured here */
    printf("# %s\n", be->detail);
    if (profile) { /* what ncu looks at: one launch of each */
        copy_gbs = 1;
        for (enum weight_form form : {FORM_COMPACT, FORM_PLANES}) {
            struct weight *w = random_weight(form, 3, 11008, 4096);
            for (int n : {1, 32, 64, 512}) {
                struct buffer *x = random_buffer((size_t)n * 4096),
                              *y = random_buffer((size_t)n * 11008);
                begin(n, 1, 0, n / 16 + 1);
                struct linear_call c = {y, w, NULL, ACT_NONE, false};
                backend_linear(be, &c, 1, x);
            }
        }
        return backend_sync(be, &err) ? 1 : 0;
    }
    bench_copy();
    if (argc > 1 && !strcmp(argv[1], "--ways")) {
        bench_all_ways();
        return 0;
    }
    const int shapes[][2] = {
        {4096, 4096}, {11008, 4096}, {4096, 11008}, {14336, 4096}, {8192, 8192}};
    const std::vector<int> all = {1, 2, 4, 8, 16, 32, 64}, some = {1, 4, 8, 16, 64}, one = {1};
    for (int s = 0; s < 5; s++) {
        int rows = shapes[s][0], cols = shapes[s][1];
        for (int bits = 3; bits >= 2; bits--)
            for (enum weight_form form : {FORM_COMPACT, FORM_PLANES})
                bench_linear(form, bits, rows, cols, quick ? (bits == 3 ? some : one) : all);
        for (enum weight_form form : {FORM_COMPACT, FORM_PLANES})
            bench_linear(form, 4, rows, cols, quick ? one : all);
        for (int bits = 4; bits >= 2; bits--) bench_lut(bits, rows, cols);
        bench_linear(FORM_HALVES, 0, rows, cols, quick ? one : all);
        bench_cublas(rows, cols, quick ? some : all);
    }
    const std::vector<int> long_ones =
        quick ? std::vector<int>{512} : std::vector<int>{128, 512, 2048};
    for (int s = 0; s < (quick ? 2 : 5); s++) {
        for (enum weight_form form : {FORM_COMPACT, FORM_PLANES, FORM_HALVES})
            bench_linear(form, 3, shapes[s][0], shapes[s][1], long_ones);
        bench_cublas(shapes[s][0], shapes[s][1], long_ones);
    }
    bench_attention(1, 512, 1, 32, 8, 128);
    bench_attention(1, 4096, 1, 32, 8, 128);
    bench_attention(1, 32768, 1, 32, 8, 128);
    bench_attention(16, 4096, 1, 32, 8, 128);
    bench_attention(1, 0, 512, 32, 8, 128);
    bench_attention(1, 0, 2048, 32, 8, 128);
    bench_small(4096);
    bench_small(11008);
    return 0;
}
