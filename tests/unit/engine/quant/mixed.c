#include "engine/quant/mixed.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/quant/quantize.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"
#include "tests/unit/engine/quant/support.h"

enum { MAX_UNITS = 64 };

/* Sizes as matrices have them, a few kinds only, or any; harms that fall, mostly. */
static void make_units(struct mixed_unit *units, int n, uint64_t seed, bool few_sizes) {
    for (int i = 0; i < n; i++) {
        uint64_t size = few_sizes ? 64u << (int)(3.0 * support_uniform(&seed))
                                  : 50 + (uint64_t)(1000.0 * support_uniform(&seed));
        double harm = exp(2.0 * support_normal(&seed));
        for (int c = 0; c < BCQ_MAX_BITS; c++) {
            units[i].bytes[c] = size * (uint64_t)(c + 1) + 10;
            units[i].harm[c] = harm;
            harm *= 1.1 * support_uniform(&seed);
        }
    }
}

static double cost_of(const struct mixed_unit *units, const int *bits, int n, uint64_t *bytes) {
    double harm = 0.0;
    *bytes = 0;
    for (int i = 0; i < n; i++) {
        cr_assert(bits[i] >= 1 && bits[i] <= BCQ_MAX_BITS);
        harm += units[i].harm[bits[i] - 1];
        *bytes += units[i].bytes[bits[i] - 1];
    }
    return harm;
}

static double brute_force(const struct mixed_unit *units, int n, uint64_t budget) {
    double least = INFINITY;
    for (long all = 0; all < 1L << (2 * n); all++) {
        int bits[MAX_UNITS];
        uint64_t bytes;
        for (int i = 0; i < n; i++) bits[i] = (int)(all >> (2 * i) & 3) + 1;
        double harm = cost_of(units, bits, n, &bytes);
        if (bytes <= budget) least = fmin(least, harm);
    }
    return least;
}

Test(mixed, small_problems_are_solved_exactly) {
    int better = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct mixed_unit units[MAX_UNITS];
        struct error err;
        int n = 1 + (int)(seed % 7), bits[MAX_UNITS], greedy[MAX_UNITS];
        uint64_t least = 0, most = 0, bytes;
        double price;
        make_units(units, n, seed, seed % 2);
        for (int i = 0; i < n; i++) least += units[i].bytes[0];
        for (int i = 0; i < n; i++) most += units[i].bytes[3];
        for (int step = 0; step <= 6; step++) {
            uint64_t budget = least + (most - least) * (uint64_t)step / 6;
            cr_assert_eq(mixed_allocate(bits, units, (size_t)n, budget, &err), 0, "%s", err.text);
            double harm = cost_of(units, bits, n, &bytes);
            cr_assert_leq(bytes, budget);
            double best = brute_force(units, n, budget);
            cr_assert_float_eq(harm, best, 1e-9 * best, "seed %d step %d: %g, not %g", (int)seed,
                               step, harm, best);
            cr_assert_eq(mixed_greedy(greedy, &price, units, (size_t)n, budget, &err), 0);
            better += harm < 0.999 * cost_of(units, greedy, n, &bytes);
            cr_assert_leq(bytes, budget);
        }
    }
    cr_assert_gt(better, 20, "the greedy walk alone is not the optimum");
}

/* With one byte count per bit for all units, dynamic programming over the bits is exact. */
static double by_bits(const struct mixed_unit *units, int n, int total) {
    static double best[MAX_UNITS + 1][4 * MAX_UNITS + 1];
    for (int i = 0; i <= n; i++)
        for (int b = 0; b <= total; b++) best[i][b] = i ? INFINITY : 0.0;
    for (int i = 0; i < n; i++)
        for (int b = 0; b <= total; b++)
            for (int c = 0; c < BCQ_MAX_BITS && b + c + 1 <= total; c++)
                best[i + 1][b + c + 1] =
                    fmin(best[i + 1][b + c + 1], best[i][b] + units[i].harm[c]);
    double least = INFINITY;
    for (int b = 0; b <= total; b++) least = fmin(least, best[n][b]);
    return least;
}

Test(mixed, many_equal_units_agree_with_dynamic_programming) {
    struct mixed_unit units[MAX_UNITS];
    struct error err;
    int bits[MAX_UNITS];
    uint64_t bytes;
    make_units(units, MAX_UNITS, 7, false);
    for (int i = 0; i < MAX_UNITS; i++)
        for (int c = 0; c < BCQ_MAX_BITS; c++) units[i].bytes[c] = 64 * (uint64_t)(c + 1);
    for (int total = MAX_UNITS; total <= 4 * MAX_UNITS; total += 16) {
        cr_assert_eq(mixed_allocate(bits, units, MAX_UNITS, 64 * (uint64_t)total, &err), 0);
        double harm = cost_of(units, bits, MAX_UNITS, &bytes);
        double best = by_bits(units, MAX_UNITS, total);
        cr_assert_float_eq(harm, best, 1e-9 * best, "%d: %g, not %g", total, harm, best);
    }
    cr_assert_eq(mixed_allocate(bits, units, MAX_UNITS, 64 * MAX_UNITS - 1, &err), -ERANGE);
}

/* -- A whole model ---------------------------------------------------------------------------- */

struct seen {
    int blocks; /* of the search for sensitivities */
};

static void see_progress(void *arg, enum quantize_stage stage, double done, double total) {
    struct seen *seen = arg;
    if (stage != QUANTIZE_SENSITIVITIES) return;
    cr_assert(done <= total);
    seen->blocks++;
}

static struct quantize_options quick(double budget) {
    struct quantize_options o;
    quantize_defaults(&o);
    o.layer.n_ranges = 4;
    o.layer.n_threads = 2;
    o.windows = 6;
    o.ctx = 32;
    o.mixed.budget = budget;
    return o;
}

static int run(const char *out, const struct quantize_options *o, struct seen *seen,
               struct quantize_summary *summary, struct error *err) {
    char path[SCRATCH_PATH];
    struct quantize_events events = {.progress = see_progress, .arg = seen};
    struct source *src;
    int r = source_open(&src, scratch_fixture(path, "models/llama-gqa"), err);
    *seen = (struct seen){0};
    if (r < 0) return r;
    r = quantize_run(summary, out, src, o, &events, err);
    source_close(src);
    return r;
}

static json_t *load(const char *folder, const char *name) {
    char path[SCRATCH_PATH];
    json_t *json = json_load_file(scratch_join(path, folder, name), 0, NULL);
    cr_assert(json, "%s/%s", folder, name);
    return json;
}

/* Bits that config.json lists are those of the blocks; returns how many kinds there are. */
static int check_bits(const char *out) {
    json_t *config = load(out, "config.json"), *value;
    json_t *mixed = json_object_get(json_object_get(config, "quantization_config"), "mixed");
    const char *name;
    struct source *src;
    struct source_tensor t;
    struct error err;
    int seen[BCQ_MAX_BITS + 1] = {0}, kinds = 0, count = 0;
    cr_assert_eq(source_open(&src, out, &err), 0, "%s", err.text);
    json_object_foreach(json_object_get(mixed, "bits"), name, value) {
        char coded[256];
        snprintf(coded, sizeof coded, "%s.bcq", name);
        cr_assert_eq(source_find(src, coded, &t), 0, "%s", coded);
        cr_assert_eq(t.bcq.spec.bits, json_integer_value(value), "%s", name);
        seen[t.bcq.spec.bits] = 1;
        count++;
    }
    cr_assert_eq(count, 21);
    source_close(src);
    json_decref(config);
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++) kinds += seen[bits];
    return kinds;
}

Test(mixed, a_model_keeps_its_budget_and_what_it_has_found) {
    char folder[SCRATCH_PATH], whole[SCRATCH_PATH], broken[SCRATCH_PATH], part[SCRATCH_PATH];
    struct quantize_options o = quick(3.0);
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    scratch_join(whole, folder, "whole");
    scratch_join(broken, folder, "broken");
    cr_assert_eq(run(whole, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(seen.blocks, 3);
    cr_assert(summary.bits_per_weight <= 3.0 && summary.bits_per_weight > 2.8, "%g",
              summary.bits_per_weight);
    cr_assert_geq(check_bits(whole), 2);
    /* Stopped after the search: it is not made again. */
    o.stop_after = 1;
    cr_assert_eq(run(broken, &o, &seen, &summary, &err), -ECANCELED);
    o.stop_after = 0;
    o.layer.n_threads = 1;
    cr_assert_eq(run(broken, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(seen.blocks, 0);
    scratch_each(whole, scratch_see_same, broken);
    /* Stopped within it: some units are there, one is damaged. */
    cr_assert_eq(run(broken, &o, &seen, &summary, &err), 0, "%s", err.text);
    o.stop_after = 1;
    cr_assert_eq(run(broken, &o, &seen, &summary, &err), -ECANCELED);
    scratch_join(part, folder, "broken.partial/files");
    json_t *found = load(part, "sensitivities.json");
    cr_assert_eq(json_object_size(found), 21);
    json_object_del(found, "model.layers.1.mlp.up_proj");
    json_object_set_new(found, "model.layers.2.self_attn.o_proj",
                        json_pack("[f, s, f, f]", 1.0, "x", 1.0, 1.0));
    char path[SCRATCH_PATH];
    json_dump_file(found, scratch_join(path, part, "sensitivities.json"), 0);
    json_decref(found);
    o.stop_after = 0;
    cr_assert_eq(run(broken, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_eq(seen.blocks, 3);
    scratch_each(whole, scratch_see_same, broken);
    scratch_remove(folder);
}

/* The harms of all units of a model, by whichever way. */
static json_t *harms(const char *folder, enum sensitivity_by by) {
    char out[SCRATCH_PATH];
    struct quantize_options o = quick(3.0);
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_join(out, folder, sensitivity_by_name(by));
    o.mixed.by = by;
    cr_assert_eq(run(out, &o, &seen, &summary, &err), 0, "%s", err.text);
    return load(out, "sensitivities.json");
}

Test(mixed, gradients_foretell_the_divergence) {
    char folder[SCRATCH_PATH];
    const char *name;
    json_t *list;
    scratch_make(folder);
    json_t *seen = harms(folder, SENSITIVITY_KL), *told = harms(folder, SENSITIVITY_GRADIENT);
    cr_assert_eq(json_object_size(told), 21);
    json_object_foreach(seen, name, list) {
        for (size_t bits = 2; bits <= BCQ_MAX_BITS; bits++) {
            double kl = json_number_value(json_array_get(list, bits - 1));
            double to_second_order =
                json_number_value(json_array_get(json_object_get(told, name), bits - 1));
            cr_assert(to_second_order > 0.4 * kl && to_second_order < 3.0 * kl, "%s, %zu: %g, %g",
                      name, bits, kl, to_second_order);
        }
    }
    json_decref(seen);
    json_decref(told);
    scratch_remove(folder);
}

Test(mixed, as_many_bits_as_in_equal_matrices) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    struct quantize_summary equal, mixed;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++) {
        struct quantize_options o = quick(0.0);
        o.layer.bits = bits;
        cr_assert_eq(run(scratch_join(out, folder, "equal"), &o, &seen, &equal, &err), 0, "%s",
                     err.text);
        o.mixed.as_bits = true;
        o.force = true;
        cr_assert_eq(run(scratch_join(out, folder, "mixed"), &o, &seen, &mixed, &err), 0, "%s",
                     err.text);
        bool free = bits > 1 && bits < BCQ_MAX_BITS;
        cr_assert_eq(seen.blocks, free ? 3 : 0, "%d", bits);
        cr_assert(mixed.bits_per_weight <= equal.bits_per_weight + 1e-9);
        cr_assert(mixed.bits_per_weight > 0.97 * equal.bits_per_weight);
        cr_assert_eq(check_bits(out) > 1, free, "%d", bits);
        scratch_remove(scratch_join(out, folder, "equal"));
        scratch_remove(scratch_join(out, folder, "mixed"));
    }
    scratch_remove(folder);
}

Test(mixed, every_way_to_code_a_matrix_takes_its_bits) {
    static const struct blockwise_options methods[] = {
        {.hessian = HESSIAN_FISHER}, {.hessian = HESSIAN_GUIDED}, {.tune_epochs = 1}};
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    scratch_join(out, folder, "out");
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        struct quantize_options o = quick(2.7);
        o.blockwise = methods[i];
        o.force = true;
        cr_assert_eq(run(out, &o, &seen, &summary, &err), 0, "%s", err.text);
        cr_expect_geq(check_bits(out), 2, "%zu", i);
        cr_expect_leq(summary.bits_per_weight, 2.7);
    }
    scratch_remove(folder);
}

Test(mixed, shared_inputs_share_bits_and_loss_needs_no_forward_pass) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    struct quantize_options o = quick(2.6);
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    scratch_join(out, folder, "out");
    o.mixed.by = SENSITIVITY_LOSS;
    o.mixed.per = SENSITIVITY_INPUT;
    o.layer.kind = BCQ_COMPACT_GROUP;
    cr_assert_eq(run(out, &o, &seen, &summary, &err), 0, "%s", err.text);
    cr_assert_leq(summary.bits_per_weight, 2.6);
    check_bits(out);
    json_t *config = load(out, "config.json");
    json_t *mixed = json_object_get(json_object_get(config, "quantization_config"), "mixed");
    json_t *bits = json_object_get(mixed, "bits");
    for (int layer = 0; layer < 3; layer++) {
        char q[128], k[128];
        snprintf(q, sizeof q, "model.layers.%d.self_attn.q_proj", layer);
        snprintf(k, sizeof k, "model.layers.%d.self_attn.k_proj", layer);
        cr_assert(json_equal(json_object_get(bits, q), json_object_get(bits, k)));
    }
    json_decref(config);
    scratch_remove(folder);
}

Test(mixed, what_cannot_be_is_refused_with_its_range) {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    struct quantize_summary summary;
    struct seen seen;
    struct error err;
    scratch_make(folder);
    scratch_join(out, folder, "out");
    struct quantize_options o = quick(0.9);
    cr_assert_eq(run(out, &o, &seen, &summary, &err), -EINVAL);
    cr_assert(strstr(err.text, "1 bit everywhere makes"), "%s", err.text);
    o = quick(9.0);
    cr_assert_eq(run(out, &o, &seen, &summary, &err), -EINVAL);
    o = quick(3.0);
    o.layer.step_bits = 3;
    cr_assert_eq(run(out, &o, &seen, &summary, &err), -EINVAL);
    cr_assert(strstr(err.text, "at 4 bits"), "%s", err.text);
    o = quick(3.0);
    o.is_static = true;
    o.end_block = 1;
    cr_assert_eq(run(out, &o, &seen, &summary, &err), -EINVAL);
    cr_assert(strstr(err.text, "all of its blocks"), "%s", err.text);
    scratch_remove(folder);
}
