/* One limit for weights, work areas and the KV pool. */
#include "engine/engine_budget.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/source.h"
#include "kernels/backend.h"
#include "kernels/error.h"
#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/tiny_source.h"

enum { CONTEXT = 1024 };

static struct engine_info info_of(const struct engine_options *options) {
    struct desk d;
    desk_open(&d, options, CONTEXT, true);
    struct engine_info info = *engine_get_info(d.engine);
    desk_close(&d);
    return info;
}

static void expect_refused_by(const char *option, const struct engine_options *options,
                              const char *says) {
    struct engine *e = NULL;
    struct error err = {""};
    struct source *src = tiny_source_open(CONTEXT, true);
    cr_expect_eq(engine_open(&e, src, options, &err), -EINVAL);
    cr_expect(strstr(err.text, option), "%s", err.text);
    cr_expect(strstr(err.text, says), "%s", err.text);
    cr_expect(fake_model_all_closed());
    cr_expect_null(e);
    source_close(src);
}

static void expect_refused(const struct engine_options *options, const char *says) {
    expect_refused_by("memory_limit", options, says);
}

/* Bytes that the rest needs beside a pool. */
static size_t base_bytes(const struct engine_options *options) {
    struct engine_info info = info_of(options);
    return info.weight_bytes + info.work_bytes;
}

Test(engine_budget, says_where_memory_goes) {
    struct engine_options options = desk_options();
    struct engine_info info = info_of(&options);
    cr_expect_eq(info.kv_block_tokens, BACKEND_KV_BLOCK);
    cr_expect_eq(info.kv_token_bytes, sizeof(int32_t));
    cr_expect_eq(info.kv_bytes, CONTEXT * sizeof(int32_t));
    size_t logits = (size_t)options.max_running * FAKE_MODEL_VOCAB * sizeof(float);
    cr_expect_gt(info.work_bytes, logits + 2 * FAKE_MODEL_VOCAB * sizeof(float));
    cr_expect_lt(info.work_bytes, logits + 65536);
    options.draft_tokens = 3; /* a row of logits for each guess */
    cr_expect_geq(info_of(&options).work_bytes, info.work_bytes + 3 * logits);
}

Test(engine_budget, the_pool_gets_what_is_left) {
    struct engine_options options = desk_options();
    size_t base = base_bytes(&options), block = BACKEND_KV_BLOCK * sizeof(int32_t);
    static const int blocks[] = {16, 17, 40, 64, 200};
    for (int i = 0; i < 5; i++) {
        options.memory_limit = (int64_t)(base + (size_t)blocks[i] * block + block - 1);
        struct engine_info info = info_of(&options);
        cr_expect_eq(info.kv_bytes, (size_t)blocks[i] * block, "%d", blocks[i]);
        cr_expect_eq(info.context, blocks[i] < 64 ? blocks[i] * BACKEND_KV_BLOCK : CONTEXT);
        cr_expect_leq(info.weight_bytes + info.work_bytes + info.kv_bytes,
                      (size_t)options.memory_limit);
    }
}

Test(engine_budget, no_more_than_is_of_use) {
    struct engine_options options = desk_options();
    options.memory_limit = (int64_t)1 << 40;
    cr_expect_eq(info_of(&options).kv_bytes, 4 * 4 * CONTEXT * sizeof(int32_t));
    options.kv_tokens = 512;
    cr_expect_eq(info_of(&options).kv_bytes, 512 * sizeof(int32_t));
}

Test(engine_budget, refuses_what_cannot_hold_a_useful_context) {
    struct engine_options options = desk_options();
    size_t base = base_bytes(&options), least = ENGINE_BUDGET_LEAST * sizeof(int32_t);
    options.memory_limit = (int64_t)(base + least - 1);
    expect_refused(&options, "keys and values of 256 positions");
    options.memory_limit = (int64_t)base - 1;
    expect_refused(&options, "the limit is");
    options.memory_limit = 2; /* the fake says that 3 bytes are packed at its first report */
    expect_refused(&options, "weights are more already");
    options.memory_limit = -1;
    expect_refused(&options, "negative");
    options.memory_limit = (int64_t)(base + least);
    cr_expect_eq(info_of(&options).context, ENGINE_BUDGET_LEAST);
    options.kv_tokens = 2 * ENGINE_BUDGET_LEAST;
    expect_refused(&options, "values of 512 positions");
    options.max_context = 64; /* shorter contexts are useful where they are what is asked for */
    options.kv_tokens = 0;
    options.memory_limit = (int64_t)(base + 64 * sizeof(int32_t));
    cr_expect_eq(info_of(&options).context, 64);
}

Test(engine_budget, a_device_gives_a_fraction_of_its_memory_less_what_is_taken) {
    struct engine_options options = desk_options();
    size_t block = BACKEND_KV_BLOCK * sizeof(int32_t);
    fake_model_set_device(1000 * block, 700 * block); /* 300 are taken */
    options.gpu_fraction = 0.5;
    cr_expect_eq(info_of(&options).kv_bytes, 200 * block);
    options.gpu_fraction = 0; /* 0.9 */
    cr_expect_eq(info_of(&options).kv_bytes, 600 * block);
    fake_model_set_device(10000 * block, 9700 * block);
    cr_expect_eq(info_of(&options).kv_bytes, 4 * 4 * CONTEXT * sizeof(int32_t));
    fake_model_set_device(1000 * block, 700 * block);
    options.gpu_fraction = 0.364; /* one context */
    cr_expect_eq(info_of(&options).kv_bytes, CONTEXT * sizeof(int32_t));
    options.gpu_fraction = 0.5;
    options.kv_tokens = 3000; /* overrules it, also beyond the fraction */
    cr_expect_eq(info_of(&options).kv_bytes, 3008 * sizeof(int32_t));
    options.kv_tokens = 16;
    options.gpu_fraction = 0.01;
    cr_expect_eq(info_of(&options).kv_bytes, block);
}

Test(engine_budget, a_device_without_room_for_a_context_is_refused) {
    struct engine_options options = desk_options();
    size_t block = BACKEND_KV_BLOCK * sizeof(int32_t);
    fake_model_set_device(1000 * block, 700 * block);
    options.gpu_fraction = 0.363;
    expect_refused_by("gpu_memory_fraction", &options, "one context of 1024 positions");
    options.gpu_fraction = 0.1; /* less than is taken */
    expect_refused_by("gpu_memory_fraction", &options, "above 0, up to 1");
    options.gpu_fraction = 1.5;
    expect_refused_by("gpu_memory_fraction", &options, "at most 1");
    options.gpu_fraction = 0.1;
    options.max_context = 64;
    fake_model_set_device(1000 * block, 904 * block);
    cr_expect_eq(info_of(&options).kv_bytes, 4 * block);
}

Test(engine_budget, a_null_engine_needs_no_limit) {
    struct engine_options options = desk_options();
    options.null = true;
    options.null_token = -1;
    options.memory_limit = 1;
    struct engine_info info = info_of(&options);
    cr_expect(info.weight_bytes == 0 && info.kv_bytes == 0 && info.kv_token_bytes == 0);
}

Test(engine_budget, a_limit_that_is_met_while_loading_breaks_the_engine) {
    struct desk d;
    struct error err = {""};
    struct engine_options options = desk_options();
    options.async = true;
    options.memory_limit = 2;
    desk_open(&d, &options, CONTEXT, true);
    cr_expect_eq(desk_wait_loaded(&d, &err), ENGINE_BROKEN);
    cr_expect(strstr(err.text, "memory_limit"), "%s", err.text);
    desk_close(&d);
}
