/* Tokens drawn from a row in short are those drawn from the row, to the last state of the generator. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"
#include "kernels/backend.h"
#include "tests/support/in_short.h"
#include "tests/support/matrix.h"
#include "tests/support/random.h"

enum { MOST = 40000, N_SPANS = (MOST + BACKEND_SPAN - 1) / BACKEND_SPAN };

static float logits[MOST];
static uint64_t ranks[BACKEND_TOP], sums[N_SPANS];
static const struct sampler_short in = {ranks, sums, BACKEND_TOP, BACKEND_SPAN};

static struct sampler_params params_of(float temperature, int top_k, float top_p, float min_p) {
    struct sampler_params params;
    sampler_defaults(&params);
    params.temperature = temperature;
    params.top_k = top_k;
    params.top_p = top_p;
    params.min_p = min_p;
    return params;
}

/* As far off as a device's may be: one span by the 2^-17th of all. */
static void describe(int width, float temperature, uint64_t *state) {
    in_short(logits, width, temperature > 0 ? temperature : 1, ranks, sums);
    uint64_t total = 0, spans = (uint64_t)backend_spans(width);
    for (uint64_t i = 0; i < spans; i++) total += sums[i];
    uint64_t *span = &sums[random_next(state) % spans], off = total >> 17;
    *span = random_next(state) % 2 ? *span + off : *span > off ? *span - off : 0;
}

static bool draw_short(struct sampler *s, struct sampler_work *w, int32_t *ret) {
    int32_t found;
    enum sampler_found how = sampler_short(s, w, &in, &found);
    *ret = found;
    if (how != SAMPLER_IN_SPAN) return how == SAMPLER_FOUND;
    return sampler_in_span(s, w, &in, found, logits + found * BACKEND_SPAN, ret);
}

/* Returns how many of n seeds were served. */
static int compare(int width, const struct sampler_params *params, int n, uint64_t seed) {
    struct sampler_work *work = sampler_work_new(width);
    uint64_t state = seed;
    int served = 0;
    cr_assert_not_null(work);
    for (int i = 0; i < n; i++) {
        struct sampler one, other;
        struct sampler_result want;
        int32_t got;
        if (i % 16 == 0) describe(width, params->temperature, &state);
        sampler_init(&one, params, seed + (uint64_t)i);
        other = one;
        bool found = draw_short(&other, work, &got);
        cr_assert(found || !memcmp(other.rng, one.rng, sizeof one.rng));
        sampler_next(&one, work, &(struct sampler_call){.logits = logits, .n_top = -1}, &want);
        if (!found) continue;
        served++;
        cr_assert_eq(got, want.id, "%d for %d of %d: seed %llu, T %g, top_k %d, top_p %g, min_p %g",
                     got, want.id, width, (unsigned long long)seed + (unsigned long long)i,
                     (double)params->temperature, params->top_k, (double)params->top_p,
                     (double)params->min_p);
        cr_assert_arr_eq(other.rng, one.rng, sizeof one.rng);
    }
    sampler_work_free(work);
    return served;
}

static void fill_normal(int width, float spread, uint64_t seed) {
    for (int i = 0; i < width; i++) logits[i] = spread * matrix_normal(&seed);
}

static void fill(int kind, int width, uint64_t seed) {
    fill_normal(width, 4, seed);
    for (int i = 0; i < width; i++) {
        if (kind == 1) logits[i] = floorf(logits[i]); /* ties */
        if (kind == 2) logits[i] = 0;
        if (kind == 3 && i % 3) logits[i] = i % 2 ? NAN : -INFINITY;
        if (kind == 4 && i % 64 == 5) logits[i] = INFINITY;
        if (kind == 5) logits[i] = -(float)i / 4;
        if (kind == 6) logits[i] = i % 2 ? NAN : -INFINITY;
        if (kind == 7) logits[i] = (float)i * 1e-6f; /* weights that differ in last bits */
        if (kind == 8) logits[i] = i + 1 < width ? -30 : 0;
    }
}

Test(sampler_short, equals_the_row_whatever_it_is) {
    static const int widths[] = {1, 2, 127, 128, 129, 2048, 5003};
    static const float heats[] = {0, 1, 0.7f, 5, 100, 1e-45f}, ps[] = {1, 0.9f, 0.3f, 1e-6f};
    static const float mins[] = {0, 0.05f, 0.9999999f};
    static const int ks[] = {0, 1, 40, BACKEND_TOP, BACKEND_TOP + 1, 4000};
    uint64_t seed = 7;
    for (int kind = 0; kind < 9; kind++)
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
            fill(kind, widths[i], seed);
            for (int turn = 0; turn < 6 * 4 * 3 * 6; turn += 1 + widths[i] / 500) {
                struct sampler_params params = params_of(heats[turn % 6], ks[turn / 6 % 6],
                                                         ps[turn / 36 % 4], mins[turn / 144]);
                compare(widths[i], &params, 4, seed += 4);
            }
        }
}

Test(sampler_short, serves_what_people_ask_for) {
    const struct sampler_params usual[] = {
        params_of(1, 0, 1, 0),
        params_of(0.7f, 0, 1, 0),
        params_of(0.8f, 40, 0.95f, 0.05f),
        params_of(1, 50, 1, 0),
        params_of(0.6f, 20, 0.95f, 0),
        params_of(0.7f, 0, 0.9f, 0),
        params_of(1.5f, 0, 1, 0.1f),
        params_of(0, 0, 1, 0),
        params_of(0.7f, 1000, 1, 0.05f),
    };
    fill_normal(MOST, 2.4f, 3);
    for (int i = 0; i < 20; i++)
        logits[i * 1999] = 14 - 0.3f * (float)i; /* peaks, as texts have them */
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        int served = compare(MOST, &usual[i], 200, 1000 * i);
        cr_expect_geq(served, 180, "set %zu: %d of 200", i, served);
    }
}

Test(sampler_short, leaves_to_the_row_what_does_not_fit) {
    const struct sampler_params wide[] = {
        params_of(1, BACKEND_TOP + 1, 1, 0),
        params_of(1, 3000, 0.5f, 0),
        params_of(1, 0, 0.9f, 0),
        params_of(1, 0, 1, 1e-4f),
    };
    fill_normal(MOST, 1, 5);
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        cr_expect_eq(compare(MOST, &wide[i], 20, i), 0, "set %zu", i);
}

/* The sums are of the whole row, and top_p is a share of the k best alone. */
Test(sampler_short, a_share_of_more_than_are_listed_is_the_rows) {
    struct sampler_params params = params_of(1, BACKEND_TOP + 20, 0.25f, 0);
    for (int i = 0; i < 1000; i++) logits[i] = i ? -(float)i / 2000 : logf(200);
    cr_expect_eq(compare(1000, &params, 50, 1), 0);
    params.top_k = 0;
    cr_expect_eq(compare(1000, &params, 50, 1), 50);
}

/* Whether the second of two equals is needed hangs on the last bit of a sum that is not known. */
Test(sampler_short, does_not_guess_at_a_border) {
    const struct sampler_params half = params_of(1, 0, 0.5f, 0), more = params_of(1, 0, 0.51f, 0);
    for (int i = 0; i < 300; i++) logits[i] = i < 2 ? 5 : -100;
    cr_expect_eq(compare(300, &half, 50, 1), 0);
    cr_expect_eq(compare(300, &more, 50, 1), 50);
}

Test(sampler_short, knows_a_bound_for_vocabularies_of_a_million) {
    enum { TOO_MANY = (1 << 20) + 1 };
    struct sampler_work *work = sampler_work_new(TOO_MANY);
    const struct sampler_params plain = params_of(1, 0, 1, 0), some = params_of(1, 0, 0.5f, 0);
    static uint64_t many[TOO_MANY / BACKEND_SPAN + 1];
    struct sampler_short row = {ranks, many, BACKEND_TOP, BACKEND_SPAN};
    struct sampler s;
    int32_t id;
    fill_normal(MOST, 9, 4);
    in_short(logits, MOST, 1, ranks, many);
    sampler_init(&s, &plain, 1);
    cr_expect_eq(sampler_short(&s, work, &row, &id), SAMPLER_NOT_FOUND);
    sampler_init(&s, &some, 1);
    cr_expect_eq(sampler_short(&s, work, &row, &id), SAMPLER_NOT_FOUND);
    sampler_work_free(work);
}
