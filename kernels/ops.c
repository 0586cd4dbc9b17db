#include "kernels/ops.h"

#include "kernels/cpu/features.h"

void ops_init(struct ops *ops, unsigned features) {
    ops_init_ref(ops);
#if defined(__x86_64__)
    if (features & FEATURE_AVX2) ops_init_avx2(ops);
    if (features & FEATURE_AVX512) ops_init_avx512(ops);
    if (features & FEATURE_AMX) ops_init_amx(ops);
#elif defined(__aarch64__)
    if (features & FEATURE_NEON) ops_init_neon(ops);
#else
    (void)features;
#endif
}
