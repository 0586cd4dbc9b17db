#include "tests/bench/read_ways.h"

#include <stdio.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { LINE = 64 };

/* Far and near. Four streams with the last pair are the fastest on an Emerald Rapids, 7 % ahead of the
 * other ways with both distances. */
static const int ahead[][2] = {{0, 0},       {0, 1024},     {0, 4096},     {4096, 512},
                               {8192, 1024}, {16384, 1024}, {16384, 4096}, {2048, 1024}};
enum { N_AHEAD = sizeof ahead / sizeof *ahead, N_STREAMS = READ_WAYS / 2 / N_AHEAD };

static enum read_loads widest(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return READ_64;
    if (__builtin_cpu_supports("avx2")) return READ_32;
#endif
    return READ_WORDS;
}

void read_ways(struct read_way ways[READ_WAYS]) {
    for (int i = 0; i < READ_WAYS; i++) {
        const int *a = ahead[i / N_STREAMS % N_AHEAD];
        ways[i] = (struct read_way){i < READ_WAYS / 2 ? READ_WORDS : widest(), 1 << i % N_STREAMS,
                                    a[0], a[1]};
    }
}

/* Begins the loop over all lines of the piece; q is the line. What is asked for behind the piece
 * need not exist. */
#define EACH_LINE(way, p, q)                                                                       \
    for (size_t i = 0, each = (size_t)READ_PIECE / (size_t)way->streams; i < each; i += LINE)      \
        for (const char *q = p + i, *end = p + READ_PIECE; q < end; q += each)

static inline void ask_ahead(const struct read_way *way, const char *line) {
    uintptr_t at = (uintptr_t)line;
    if (way->far) __builtin_prefetch((const void *)(at + (uintptr_t)way->far), 0, 2);
    if (way->near) __builtin_prefetch((const void *)(at + (uintptr_t)way->near), 0, 3);
}

static uint64_t read_words(const struct read_way *way, const char *p) {
    uint64_t sum = 0;
    EACH_LINE(way, p, q) {
        const uint64_t *w = (const uint64_t *)q;
        ask_ahead(way, q);
        sum += w[0] ^ w[1] ^ w[2] ^ w[3] ^ w[4] ^ w[5] ^ w[6] ^ w[7];
    }
    return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t read_32(const struct read_way *way, const char *p) {
    __m256i sum = _mm256_setzero_si256(), odd = sum;
    EACH_LINE(way, p, q) {
        ask_ahead(way, q);
        sum = _mm256_add_epi64(sum, _mm256_load_si256((const __m256i *)q));
        odd = _mm256_add_epi64(odd, _mm256_load_si256((const __m256i *)(q + 32)));
    }
    sum = _mm256_add_epi64(sum, odd);
    return (uint64_t)_mm256_extract_epi64(sum, 0) + (uint64_t)_mm256_extract_epi64(sum, 1) +
           (uint64_t)_mm256_extract_epi64(sum, 2) + (uint64_t)_mm256_extract_epi64(sum, 3);
}

__attribute__((target("avx512f"))) static uint64_t read_64(const struct read_way *way,
                                                           const char *p) {
    __m512i sum = _mm512_setzero_si512();
    EACH_LINE(way, p, q) {
        ask_ahead(way, q);
        sum = _mm512_add_epi64(sum, _mm512_load_si512((const void *)q));
    }
    return (uint64_t)_mm512_reduce_add_epi64(sum);
}
#endif

uint64_t read_piece(const struct read_way *way, const char *p) {
#if defined(__x86_64__)
    if (way->loads == READ_64) return read_64(way, p);
    if (way->loads == READ_32) return read_32(way, p);
#endif
    return read_words(way, p);
}

void read_way_text(const struct read_way *way, char *text, size_t size) {
    static const char *const loads[] = {"words", "32-byte loads", "64-byte loads"};
    snprintf(text, size, "%s, %d stream%s, %d bytes ahead into L2, %d into L1", loads[way->loads],
             way->streams, way->streams > 1 ? "s" : "", way->far, way->near);
}
