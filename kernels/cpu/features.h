/* features.h - tells which instruction sets the CPU back end may use.
 *
 * Owns      nothing.
 * Borrows   the level's name during features_parse().
 * Thread    any.
 * Fails     features_parse() with -EINVAL naming the levels there are.
 * Cost      a few cpuid instructions, with AMX a system call; on AArch64 a look at what the kernel passed.
 *
 * A bit is set only if the processor and the operating system both support everything that the
 * folder of that name is compiled with. */
#ifndef KERNELS_CPU_FEATURES_H
#define KERNELS_CPU_FEATURES_H

struct error;

enum {
    FEATURE_AVX2 = 1,   /* AVX2, FMA, F16C, BMI2 */
    FEATURE_AVX512 = 2, /* AVX-512 F BW VL DQ VBMI VNNI on top (Zen 4, Ice Lake and later) */
    FEATURE_AMX = 8,    /* AMX tiles and int8 products on top, and the kernel's leave to use them */
    FEATURE_NEON = 4    /* Advanced SIMD of AArch64, with no extension */
};

/* What the processor has. */
unsigned features_detect(void);

/* "ref", "avx2", "avx512", "amx", "neon" or "auto"; the result is never more than the processor has: a level
 * that it lacks is -ENOTSUP. */
int features_parse(unsigned *ret, const char *level, struct error *err);

#endif
