#include "tests/kernels/check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/features.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

const int check_sizes[CHECK_N_SIZES] = {1,  3,  7,  8,   15,  16,  17,  31,  32,
                                        33, 63, 64, 127, 128, 129, 255, 576, 1000};

void check_expect(struct check *c, bool good, const char *format, ...) {
    c->n_expectations++;
    if (good) return;
    if (!c->n_failures++) {
        va_list args;
        va_start(args, format);
        vsnprintf(c->first, sizeof c->first, format, args);
        va_end(args);
    }
}

bool check_finite(enum check_input input) {
    return input != INPUT_NOT_FINITE && input != INPUT_NAN && input != INPUT_INFINITE;
}

/* Value i of the inputs for products, made of an ordinary v. */
static float product_input(enum check_input input, size_t i, float v, bool rare) {
    switch (input) {
    case INPUT_MINUS:
        return -1;
    case INPUT_HUGE:
        return copysignf(1e30f, v);
    case INPUT_GIANT:
        return rare ? copysignf(1e8f, v) : v;
    case INPUT_FAINT:
        return v * 1e-31f;
    case INPUT_DENORMAL:
        return v * 1e-39f;
    case INPUT_HALF_STEPS:
        return rare ? 1e4f : 1e4f / 66000 / (float)(1 << i / 1000 % 3 * 2);
    case INPUT_NAN:
        return rare ? NAN : v;
    case INPUT_INFINITE:
        return rare ? copysignf(INFINITY, v) : v;
    default:
        return v;
    }
}

void check_fill(float *x, size_t n, enum check_input input, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        float v = matrix_normal(&seed);
        if (input == INPUT_OUTLIERS && random_next(&seed) % 64 == 0) v *= 20;
        if (input == INPUT_ZERO || input == INPUT_ONE_HOT) v = 0;
        if (input == INPUT_ONES) v = 1;
        if (input == INPUT_TINY) v *= 1e-20f;
        x[i] =
            input < CHECK_N_INPUTS ? v : product_input(input, i, v, random_next(&seed) % 300 == 0);
    }
    if (input == INPUT_ONE_HOT) x[random_next(&seed) % n] = 1e4f;
    const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-42f};
    for (int i = 0; input == INPUT_NOT_FINITE && i < 5; i++) x[random_next(&seed) % n] = odd[i];
}

struct fence check_floats(size_t n, enum check_input input, uint64_t seed) {
    struct fence f = fence_new(n * sizeof(float), sizeof(float));
    check_fill(f.p, n, input, seed);
    return f;
}

bool check_same(const float *a, const float *b, size_t n) { return !memcmp(a, b, n * sizeof *a); }

bool check_alike(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!check_same(a + i, b + i, 1) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static const struct {
    const char *name;
    void (*run)(struct check *c);
} checks[] = {
    {"bcq", check_bcq},       {"bcq_act8", check_bcq_act8},   {"bcq_act4", check_bcq_act4},
    {"whole", check_whole},   {"dense", check_dense},         {"outliers", check_outliers},
    {"rotate", check_rotate}, {"attention", check_attention}, {"kv_store", check_kv_store},
    {"norm", check_norm},     {"rope", check_rope},           {"activation", check_activation},
    {"add", check_add},       {"widen", check_widen},
};
enum { N_CHECKS = sizeof checks / sizeof *checks, N_LEVELS = 5 };

static bool run_level(const char *level, const char *only, int every, const struct ops *ref,
                      int *number) {
    struct ops ops;
    unsigned features;
    bool have = !features_parse(&features, level, NULL), good = true;
    if (have) ops_init(&ops, features);
    for (int i = 0; i < N_CHECKS; i++) {
        ++*number;
        if (!have || (only && strcmp(only, checks[i].name))) {
            printf("ok %d - %s %s # SKIP %s\n", *number, level, checks[i].name,
                   have ? "not asked for" : "the processor lacks it");
            continue;
        }
        struct check c = {.ops = &ops, .ref = ref, .every = every};
        checks[i].run(&c);
        printf("%s %d - %s %s\n", c.n_failures ? "not ok" : "ok", *number, level, checks[i].name);
        printf("# %d of %ld expectations failed%s%s\n", c.n_failures, c.n_expectations,
               c.n_failures ? "; first: " : "", c.first);
        fflush(stdout);
        good = good && !c.n_failures;
    }
    return good;
}

/* check [LEVEL [OPERATION [EVERY]]], or check --bench [LEVEL [WORD]] */
int main(int argc, char **argv) {
    static const char *const levels[N_LEVELS] = {"ref", "avx2", "avx512", "amx", "neon"};
    bool bench = argc > 1 && !strcmp(argv[1], "--bench"), good = true;
    const char *const *args = (const char *const *)argv + 1 + bench;
    int n_args = argc - 1 - bench, number = 0;
    if (bench) return check_bench(n_args ? args[0] : NULL, n_args > 1 ? args[1] : NULL);
    int every = n_args > 2 ? atoi(args[2]) : 1;
    if (every < 1) {
        fprintf(stderr, "kernel_check: one matrix in %s? at least 1\n", args[2]);
        return 2;
    }
    struct ops ref;
    ops_init_ref(&ref);
    printf("1..%d\n", (n_args ? 1 : N_LEVELS) * N_CHECKS);
    for (int i = 0; i < N_LEVELS && !n_args; i++)
        good = run_level(levels[i], NULL, 1, &ref, &number) && good;
    if (n_args) good = run_level(args[0], n_args > 1 ? args[1] : NULL, every, &ref, &number);
    return good ? 0 : 1;
}
