/* syscall() is not in POSIX. */
#define _GNU_SOURCE
#include "kernels/cpu/features.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels/error.h"

#if defined(__x86_64__)

/* The compilers' __builtin_cpu_supports() differ in the names they know (clang 14 lacks "f16c"),
 * so the bits are read here; their places are in the processor manuals under CPUID. */
static uint64_t enabled_state(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux gives tile registers to a process that asks; the constants are not in Debian's headers. */
static unsigned detect_amx(uint32_t leaf7_d, uint64_t state) {
    enum { AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    const uint32_t amx = AMX_TILE | AMX_INT8;
    const uint64_t tile_state = 3ul << 17;
    if ((leaf7_d & amx) != amx || (state & tile_state) != tile_state) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) ? 0 : FEATURE_AMX;
}

unsigned features_detect(void) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };
    enum { AVX2 = 1 << 5, BMI2 = 1 << 8, AVX512F = 1 << 16, AVX512DQ = 1 << 17 };
    enum { AVX512VBMI = 1 << 1, AVX512VNNI = 1 << 11 };
    const uint32_t avx512bw_vl = 1u << 30 | 1u << 31;
    const uint64_t ymm_state = 0x06, zmm_state = 0xe6;
    uint32_t a, b, c, d, leaf1 = FMA | OSXSAVE | AVX | F16C;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1) return 0;
    uint64_t state = enabled_state();
    if ((state & ymm_state) != ymm_state) return 0;
    uint32_t avx2 = AVX2 | BMI2, avx512 = AVX512F | AVX512DQ | avx512bw_vl;
    uint32_t avx512_more = AVX512VBMI | AVX512VNNI;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & avx2) != avx2) return 0;
    if ((b & avx512) != avx512 || (c & avx512_more) != avx512_more) return FEATURE_AVX2;
    if ((state & zmm_state) != zmm_state) return FEATURE_AVX2;
    return FEATURE_AVX2 | FEATURE_AVX512 | detect_amx(d, state);
}

#elif defined(__aarch64__)

unsigned features_detect(void) { return getauxval(AT_HWCAP) & HWCAP_ASIMD ? FEATURE_NEON : 0; }

#else

unsigned features_detect(void) { return 0; }

#endif

int features_parse(unsigned *ret, const char *level, struct error *err) {
    static const struct {
        const char *name;
        unsigned needs;
    } levels[] = {{"ref", 0},
                  {"avx2", FEATURE_AVX2},
                  {"avx512", FEATURE_AVX2 | FEATURE_AVX512},
                  {"amx", FEATURE_AVX2 | FEATURE_AVX512 | FEATURE_AMX},
                  {"neon", FEATURE_NEON}};
    unsigned have = features_detect();
    if (!strcmp(level, "auto")) {
        *ret = have;
        return 0;
    }
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (strcmp(level, levels[i].name)) continue;
        if ((have & levels[i].needs) != levels[i].needs)
            return error_set(err, -ENOTSUP, "this processor does not have %s", level);
        *ret = levels[i].needs;
        return 0;
    }
    return error_set(
        err, -EINVAL,
        "unknown instruction set '%.32s' (there are auto, ref, avx2, avx512, amx, neon)", level);
}
