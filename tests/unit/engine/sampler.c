#include "engine/sampler.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "tests/support/random.h"

static struct sampler_params defaults(void) {
    struct sampler_params params;
    sampler_defaults(&params);
    return params;
}

/* One choice with nothing but logits. */
static int32_t choose(const struct sampler_params *params, uint64_t seed, const float *logits,
                      int n) {
    struct sampler s;
    struct sampler_result result;
    struct sampler_work *work = sampler_work_new(n);
    cr_assert_not_null(work);
    sampler_init(&s, params, seed);
    sampler_next(&s, work, &(struct sampler_call){.logits = logits, .n_top = -1}, &result);
    sampler_work_free(work);
    return result.id;
}

Test(sampler, checks_name_the_field) {
    static const struct sampler_bias too_much = {1, 101};
    static const struct {
        struct sampler_params params;
        const char *named;
    } cases[] = {
        {{-0.1f, 1, 0, 0, 1, 0, 0, NULL, 0}, "temperature"},
        {{NAN, 1, 0, 0, 1, 0, 0, NULL, 0}, "temperature"},
        {{INFINITY, 1, 0, 0, 1, 0, 0, NULL, 0}, "temperature"},
        {{1, 0, 0, 0, 1, 0, 0, NULL, 0}, "top_p"},
        {{1, 1.01f, 0, 0, 1, 0, 0, NULL, 0}, "top_p"},
        {{1, NAN, 0, 0, 1, 0, 0, NULL, 0}, "top_p"},
        {{1, 1, 1, 0, 1, 0, 0, NULL, 0}, "min_p"},
        {{1, 1, -1, 0, 1, 0, 0, NULL, 0}, "min_p"},
        {{1, 1, 0, -1, 1, 0, 0, NULL, 0}, "top_k"},
        {{1, 1, 0, 0, 0, 0, 0, NULL, 0}, "repetition_penalty"},
        {{1, 1, 0, 0, 1, 2.5f, 0, NULL, 0}, "presence_penalty"},
        {{1, 1, 0, 0, 1, 0, -2.5f, NULL, 0}, "frequency_penalty"},
        {{1, 1, 0, 0, 1, 0, 0, NULL, SAMPLER_MAX_BIAS + 1}, "logit_bias"},
        {{1, 1, 0, 0, 1, 0, 0, &too_much, 1}, "logit_bias"},
    };
    struct sampler_params params = defaults();
    struct error err;
    cr_expect_eq(sampler_check(&params, &err), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_expect_eq(sampler_check(&cases[i].params, &err), -EINVAL, "case %zu", i);
        cr_expect_not_null(strstr(err.text, cases[i].named), "case %zu: %s", i, err.text);
    }
}

Test(sampler, greedy_takes_the_lowest_of_equals) {
    struct sampler_params params = defaults();
    params.temperature = 0;
    cr_expect_eq(choose(&params, 1, (float[]){1, 3, 2, 3, -1}, 5), 1);
    cr_expect_eq(choose(&params, 1, (float[]){-5, -4, -4}, 3), 1);
    cr_expect_eq(choose(&params, 1, (float[]){-0.0f, 0.0f}, 2), 0);
    cr_expect_eq(choose(&params, 1, (float[]){7}, 1), 0);
}

Test(sampler, odd_numbers_do_no_harm) {
    static const struct sampler_bias high = {0, 100};
    static const float rows[][4] = {
        {NAN, NAN, NAN, NAN},
        {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
        {NAN, 1, NAN, -INFINITY},
        {INFINITY, 0, 1, -INFINITY},
        {INFINITY, INFINITY, NAN, 0},
        {FLT_MAX, -FLT_MAX, FLT_MAX, 0},
        {FLT_MIN, FLT_TRUE_MIN, -0., 0},
        {-FLT_MAX, -FLT_MAX, -FLT_MAX, -INFINITY},
    };
    static const struct sampler_params settings[] = {
        {0, 1, 0, 0, 1, 0, 0, NULL, 0},
        {1, 1, 0, 0, 1, 0, 0, NULL, 0},
        {1e-30f, 0.5f, 0.5f, 2, 0.01f, 2, 2, NULL, 0},
        {100, 1e-6f, 0.99f, 1, 100, -2, -2, NULL, 0},
        {FLT_TRUE_MIN, 0.99f, 0, 3, 0.01f, 0, 0, &high, 1},
    };
    struct sampler_work *work = sampler_work_new(4);
    static const int32_t history[] = {0, 1, 1, 3, -7, 4, 2000000000};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
            struct sampler s;
            struct sampler_result result;
            struct sampler_call call = {
                .logits = rows[i], .history = history, .n_history = 7, .n_prompt = 2, .n_top = 4};
            sampler_init(&s, &settings[k], i);
            sampler_next(&s, work, &call, &result);
            cr_expect(result.id >= 0 && result.id < 4);
            cr_expect(isfinite(result.logprob) && result.logprob <= 0, "%g",
                      (double)result.logprob);
            for (int j = 0; j < result.n_top; j++) cr_expect(isfinite(result.top_logprobs[j]));
            if (i == 2) cr_expect_eq(result.id, 1);
        }
    sampler_work_free(work);
    sampler_work_free(NULL);
}

Test(sampler, never_chooses_a_banned_token) {
    static const float logits[] = {9, 8, 7, 6};
    static const int32_t banned[] = {0, 1, 2, 99, -1};
    struct sampler_work *work = sampler_work_new(4);
    for (int greedy = 0; greedy < 2; greedy++) {
        struct sampler_params params = defaults();
        params.temperature = greedy ? 0 : 5;
        struct sampler s;
        struct sampler_result result;
        sampler_init(&s, &params, 4);
        for (int i = 0; i < 50; i++) {
            struct sampler_call call = {
                .logits = logits, .banned = banned, .n_banned = 5, .n_top = -1};
            sampler_next(&s, work, &call, &result);
            cr_expect_eq(result.id, 3);
        }
        struct sampler_call hopeless = {
            .logits = (float[]){1, 2, 3, NAN}, .banned = banned, .n_banned = 3, .n_top = -1};
        sampler_next(&s, work, &hopeless, &result);
        cr_expect_eq(result.id, 3);
    }
    sampler_work_free(work);
}

/* The generator and the draw are part of the API: these values may never change. They come from
 * an implementation of the published splitmix64 and xoshiro256** in Python. */
Test(sampler, equal_seeds_give_equal_tokens_everywhere) {
    static const float flat[1000];
    static const struct {
        uint64_t seed;
        int32_t ids[6];
    } cases[] = {
        {0u, {601, 747, 103, 416, 732, 999}},
        {1u, {702, 520, 574, 391, 697, 143}},
        {42u, {83, 378, 680, 924, 991, 769}},
        {18446744073709551615u, {559, 767, 507, 747, 567, 731}},
    };
    struct sampler_params params = defaults();
    struct sampler_work *work = sampler_work_new(1000);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sampler s;
        sampler_init(&s, &params, cases[i].seed);
        for (int k = 0; k < 6; k++) {
            struct sampler_result result;
            sampler_next(&s, work, &(struct sampler_call){.logits = flat, .n_top = -1}, &result);
            cr_expect_eq(result.id, cases[i].ids[k], "seed %zu draw %d: %d", i, k, (int)result.id);
        }
    }
    sampler_work_free(work);
}

struct candidate {
    int id;
    double logit, p;
};

static int compare_candidates(const void *left, const void *right) {
    const struct candidate *a = left, *b = right;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* The definition by sorting: fills p, 0 for what is out; margin is how close a bound was. */
static void naive(const struct sampler_params *params, const float *logits, int n, double *p,
                  double *margin) {
    struct candidate *c = calloc((size_t)n, sizeof *c);
    double total = 0, sum = 0;
    int kept = params->top_k > 0 && params->top_k < n ? params->top_k : n, k;
    for (int i = 0; i < n; i++) c[i] = (struct candidate){i, (double)logits[i], 0};
    qsort(c, (size_t)n, sizeof *c, compare_candidates);
    for (int i = 0; i < kept; i++) {
        c[i].p = exp((c[i].logit - c[0].logit) / (double)params->temperature);
        total += c[i].p;
    }
    *margin = 1;
    for (k = 0; k < kept; k++) {
        sum += c[k].p;
        double distance = fabs(sum / total - (double)params->top_p);
        if (params->top_p < 1 && distance < *margin) *margin = distance;
        if (params->top_p < 1 && sum >= (double)params->top_p * total) break;
    }
    if (k + 1 < kept) kept = k + 1;
    total = 0;
    for (int i = 0; i < n; i++) p[i] = 0;
    for (int i = 0; i < kept; i++) {
        double distance = fabs(c[i].p - (double)params->min_p);
        if (params->min_p > 0 && distance < *margin) *margin = distance;
        if (c[i].p < (double)params->min_p) continue;
        p[c[i].id] = c[i].p;
        total += c[i].p;
    }
    for (int i = 0; i < n; i++) p[i] /= total;
    free(c);
}

static void fill_logits(float *logits, int n, uint64_t *seed) {
    int kind = random_range(seed, 0, 3);
    for (int i = 0; i < n; i++) {
        float x = (float)random_range(seed, -100000, 100000) / 10000;
        logits[i] = kind == 0 ? x : kind == 1 ? floorf(x / 3) : kind == 2 ? x * 0.01f : x * 4;
    }
}

static void check_distribution(uint64_t *seed) {
    enum { N = 60, DRAWS = 400 };
    float logits[N];
    double p[N], margin;
    int n = random_range(seed, 1, N);
    struct sampler_params params = defaults();
    params.temperature = (float)random_range(seed, 1, 30) / 10;
    if (random_range(seed, 0, 1)) params.top_k = random_range(seed, 1, 70);
    if (random_range(seed, 0, 1)) params.top_p = (float)random_range(seed, 1, 99) / 100;
    if (random_range(seed, 0, 2) == 0) params.min_p = (float)random_range(seed, 1, 99) / 100;
    fill_logits(logits, n, seed);
    naive(&params, logits, n, p, &margin);
    if (margin < 1e-6) return; /* a bound within rounding: either answer is right */

    struct sampler s;
    struct sampler_result result;
    struct sampler_work *work = sampler_work_new(n);
    int seen[N] = {0};
    sampler_init(&s, &params, random_next(seed));
    for (int i = 0; i < DRAWS; i++) {
        sampler_next(&s, work, &(struct sampler_call){.logits = logits, .n_top = -1}, &result);
        seen[result.id]++;
    }
    for (int i = 0; i < n; i++) {
        double expected = p[i] * DRAWS, spread = 6 * sqrt(expected) + 3;
        cr_assert(p[i] > 0 || seen[i] == 0, "token %d is not kept, drawn %d times", i, seen[i]);
        cr_assert(fabs(seen[i] - expected) < spread, "token %d: %d times for %g", i, seen[i],
                  expected);
    }
    sampler_work_free(work);
}

Test(sampler, draws_from_the_distribution_that_sorting_gives) {
    uint64_t seed = 77;
    for (int i = 0; i < 1500; i++) check_distribution(&seed);
}

Test(sampler, keeps_exactly_k_of_equals) {
    float logits[100];
    for (int i = 0; i < 100; i++) logits[i] = i % 10 == 3 ? 2.0f : 1.0f;
    struct sampler_params params = defaults();
    params.temperature = 100;
    params.top_k = 14; /* the ten 2s and the first four 1s */
    struct sampler s;
    struct sampler_result result;
    struct sampler_work *work = sampler_work_new(100);
    bool seen[100] = {false};
    sampler_init(&s, &params, 9);
    for (int i = 0; i < 2000; i++) {
        sampler_next(&s, work, &(struct sampler_call){.logits = logits, .n_top = -1}, &result);
        seen[result.id] = true;
    }
    for (int i = 0; i < 100; i++)
        cr_expect_eq(seen[i], i % 10 == 3 || i < 3 || i == 4, "token %d", i);
    sampler_work_free(work);
}

Test(sampler, penalties_count_what_they_say) {
    static const float logits[] = {2, -2, 2, 2, 0};
    static const int32_t history[] = {0, 1, 2, 2, 3}; /* 0 and 1 are the prompt's */
    struct sampler_params params = defaults();
    params.temperature = 0;
    struct sampler_work *work = sampler_work_new(5);
    struct sampler_call call = {
        .logits = logits, .history = history, .n_history = 5, .n_prompt = 2, .n_top = -1};
    static const struct {
        float repetition, presence, frequency, bias;
        int32_t biased, id;
    } cases[] = {
        {1, 0, 0, 0, 0, 0},        /* 2 -2 2 2 0 */
        {2, 0, 0, 0, 0, 0},        /* 1 -4 1 1 0 */
        {2, 0.5f, 0, 0, 0, 0},     /* 1 -4 .5 .5 0 */
        {10, 0, 0, 0.25f, 4, 4},   /* .2 -20 .2 .2 .25 */
        {1, -0.1f, 0, 0, 0, 2},    /* 2 -2 2.1 2.1 0 */
        {1, 0, -0.1f, 0, 0, 2},    /* 2 -2 2.2 2.1 0 */
        {1, 0, 0.3f, -0.6f, 0, 3}, /* 1.4 -2 1.4 1.7 0 */
        {1, -1, 0.6f, 0, 0, 3},    /* 2 -2 1.8 2.4 0 */
        {0.5f, 0, 0, 3.5f, 4, 0},  /* 4 -1 4 4 3.5 */
        {1, 0, 0, 100, 1, 1},      /* 2 98 2 2 0 */
        {1, 0, 0, 100, 7, 0},      /* no such token */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sampler_bias bias = {cases[i].biased, cases[i].bias};
        params.repetition_penalty = cases[i].repetition;
        params.presence_penalty = cases[i].presence;
        params.frequency_penalty = cases[i].frequency;
        params.bias = &bias;
        params.n_bias = 1;
        struct sampler s;
        struct sampler_result result;
        sampler_init(&s, &params, 1);
        for (int again = 0; again < 2; again++) { /* the work area must come back clean */
            sampler_next(&s, work, &call, &result);
            cr_expect_eq(result.id, cases[i].id, "case %zu: %d", i, (int)result.id);
        }
    }
    sampler_work_free(work);
}

Test(sampler, logprobs_are_those_of_the_raw_logits) {
    enum { N = 500 };
    float logits[N];
    struct candidate sorted[N];
    uint64_t seed = 12;
    struct sampler_work *work = sampler_work_new(N);
    for (int round = 0; round < 200; round++) {
        struct sampler_params params = defaults();
        params.temperature = (float)(round % 3);
        params.top_k = 5;
        params.repetition_penalty = 2;
        fill_logits(logits, N, &seed);
        double total = 0;
        for (int i = 0; i < N; i++) {
            sorted[i] = (struct candidate){i, (double)logits[i], 0};
            total += exp((double)logits[i] - 50);
        }
        double log_total = log(total) + 50;
        qsort(sorted, N, sizeof *sorted, compare_candidates);
        int n_top = random_range(&seed, 0, SAMPLER_MAX_TOP);
        struct sampler s;
        struct sampler_result result;
        static const int32_t history[] = {1, 2, 3};
        struct sampler_call call = {
            .logits = logits, .history = history, .n_history = 3, .n_top = n_top};
        sampler_init(&s, &params, seed);
        sampler_next(&s, work, &call, &result);
        cr_assert_eq(result.n_top, n_top);
        cr_assert_float_eq((double)result.logprob, (double)logits[result.id] - log_total, 1e-5);
        for (int i = 0; i < n_top; i++) {
            cr_assert_eq(result.top_ids[i], sorted[i].id);
            cr_assert_float_eq((double)result.top_logprobs[i], sorted[i].logit - log_total, 1e-5);
        }
        cr_assert_eq(sorted[result.rank - 1].id, result.id);
        int place = random_range(&seed, 0, N - 1);
        sampler_describe(work, logits, sorted[place].id, n_top, &result);
        cr_assert_eq(result.id, sorted[place].id);
        cr_assert_eq(result.rank, place + 1);
        cr_assert_eq(result.n_top, n_top);
        cr_assert_float_eq((double)result.logprob, sorted[place].logit - log_total, 1e-5);
    }
    sampler_work_free(work);
}

Test(sampler, more_best_tokens_than_there_are) {
    struct sampler_params params = defaults();
    struct sampler s;
    struct sampler_result result;
    struct sampler_work *work = sampler_work_new(3);
    sampler_init(&s, &params, 1);
    struct sampler_call call = {.logits = (float[]){0, NAN, -20000}, .n_top = 20};
    sampler_next(&s, work, &call, &result);
    cr_expect_eq(result.id, 0);
    cr_expect_eq(result.n_top, 2);
    cr_expect_eq(result.top_ids[1], 2);
    cr_expect_eq(result.top_logprobs[1], -9999);
    sampler_work_free(work);
}

/* A vocabulary that is shortened first: of many equals in many spans exactly the best k by value, then
 * by id, are ever drawn, whatever is banned. */
Test(sampler, a_large_vocabulary_keeps_the_k_best) {
    enum { LARGE = 5003, MOST = 60 };
    static const int counts[] = {1, 7, MOST, 3};
    static float logits[LARGE];
    uint64_t state = 5;
    struct sampler_work *work = sampler_work_new(LARGE);
    for (int turn = 0; turn < 12; turn++) {
        int k = counts[turn % 4], n_banned = turn % 3 * 40;
        int32_t banned[80];
        bool kept[LARGE] = {false}, seen[LARGE] = {false}, out[LARGE] = {false};
        for (int i = 0; i < LARGE; i++) logits[i] = (float)random_range(&state, -30, 30);
        for (int i = 0; i < n_banned; i++) {
            banned[i] = (int32_t)random_range(&state, 0, LARGE - 1);
            out[banned[i]] = true;
        }
        for (int n = 0; n < k; n++) {
            int top = -1;
            for (int i = 0; i < LARGE; i++)
                if (!kept[i] && !out[i] && (top < 0 || logits[i] > logits[top])) top = i;
            kept[top] = true;
        }
        struct sampler_params params = defaults();
        struct sampler s;
        struct sampler_result result;
        params.temperature = 100;
        params.top_k = k;
        params.top_p = turn % 2 ? 0.9999999f : 1;
        sampler_init(&s, &params, (uint64_t)turn);
        for (int i = 0; i < 25 * k; i++) {
            const struct sampler_call call = {
                .logits = logits, .banned = banned, .n_banned = n_banned, .n_top = -1};
            sampler_next(&s, work, &call, &result);
            cr_assert(kept[result.id], "turn %d: %d is not among the %d best", turn, result.id, k);
            seen[result.id] = true;
        }
        for (int i = 0; i < LARGE; i++)
            cr_assert_eq(seen[i], kept[i], "turn %d: %d was never drawn", turn, i);
    }
    sampler_work_free(work);
}
