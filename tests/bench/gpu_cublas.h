/* gpu_cublas.h - the few words of cuBLAS that a comparison needs, looked for at run time.
 *
 * Owns      the library and a handle with its workspace, to the end of the process.
 * Borrows   the stream; matrices for the length of the call.
 * Thread    one.
 * Fails     open: false and a line on stderr; products: stderr.
 * Cost      open: a tenth of a second and 64 MB of the device.
 *
 * Nothing of it is needed to build, so that a benchmark built where there is only a compiler compares as well.
 * GPTQT_CUBLAS names the library where the loader does not find it. */
#ifndef TESTS_BENCH_GPU_CUBLAS_H
#define TESTS_BENCH_GPU_CUBLAS_H

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <library_types.h>
#include <stdio.h>
#include <stdlib.h>

/* Numbers of cublas_api.h. */
enum { BLAS_OP_N = 0, BLAS_OP_T = 1, BLAS_COMPUTE_32F = 68, BLAS_GEMM_DEFAULT = -1 };

struct gpu_cublas {
    void *handle;
    int (*gemm)(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha,
                const void *a, cudaDataType type_a, int lda, const void *b, cudaDataType type_b,
                int ldb, const void *beta, void *c, cudaDataType type_c, int ldc, int compute,
                int algorithm);
};

static inline bool gpu_cublas_open(struct gpu_cublas *to, cudaStream_t stream) {
    const char *names[] = {getenv("GPTQT_CUBLAS"), "libcublas.so.13", "libcublas.so.12",
                           "/usr/local/cuda/lib64/libcublas.so"};
    void *library = NULL, *space = NULL;
    for (const char *name : names)
        if (name && !library) library = dlopen(name, RTLD_NOW);
    if (!library) {
        fprintf(stderr, "gpu_bench: no cuBLAS to compare with: %s\n", dlerror());
        return false;
    }
    auto create = (int (*)(void **))dlsym(library, "cublasCreate_v2");
    auto set_stream = (int (*)(void *, cudaStream_t))dlsym(library, "cublasSetStream_v2");
    auto set_space = (int (*)(void *, void *, size_t))dlsym(library, "cublasSetWorkspace_v2");
    to->gemm = (decltype(to->gemm))dlsym(library, "cublasGemmEx");
    size_t bytes = (size_t)64 << 20;
    if (!create || !set_stream || !set_space || !to->gemm || create(&to->handle) ||
        set_stream(to->handle, stream) || cudaMalloc(&space, bytes) != cudaSuccess ||
        set_space(to->handle, space, bytes)) {
        fprintf(stderr, "gpu_bench: cuBLAS does not start\n");
        return false;
    }
    return true;
}

/* y (n, rows) = x (n, cols) W' for W (rows, cols), all fp16, sums in fp32. */
static inline void gpu_cublas_product(const struct gpu_cublas *b, int rows, int n, int cols,
                                      const void *w, const void *x, void *y) {
    float one = 1, zero = 0;
    int rc =
        b->gemm(b->handle, BLAS_OP_T, BLAS_OP_N, rows, n, cols, &one, w, CUDA_R_16F, cols, x,
                CUDA_R_16F, cols, &zero, y, CUDA_R_16F, rows, BLAS_COMPUTE_32F, BLAS_GEMM_DEFAULT);
    if (rc) fprintf(stderr, "gpu_bench: cuBLAS returned %d\n", rc);
}

#endif
