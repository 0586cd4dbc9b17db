#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/chat.h"
#include "engine/sampler.h"
#include "engine/stop.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/alloc_fail.h"

static const char tiny[] =
    "{\"added_tokens\":[{\"id\":5,\"content\":\"<x>\",\"special\":true,\"normalized\":false},"
    "{\"id\":6,\"content\":\"<y>\",\"single_word\":true}],\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-c]+\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}]},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
    "\"<x>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<x>\":{\"ids\":[5]}}},"
    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,"
    "\"c\":2,\"ab\":3,\"abc\":4},\"merges\":[\"a b\",[\"ab\",\"c\"]]}}";

/* One thing that allocates: 0, or -ENOMEM with nothing left behind. */
typedef int attempt_fn(struct tokenizer *t, struct error *err);

static int parse(struct tokenizer *t, struct error *err) {
    struct tokenizer *fresh = NULL;
    (void)t;
    int r = tokenizer_parse(&fresh, tiny, sizeof tiny - 1, err);
    cr_assert((r == 0) == (fresh != NULL));
    tokenizer_free(fresh);
    return r;
}

static int encode(struct tokenizer *t, struct error *err) {
    int32_t *ids = NULL;
    size_t n = 0;
    char text[600];
    memset(text, 'a', sizeof text);
    for (size_t i = 1; i < sizeof text; i += 2) text[i] = 'b';
    memcpy(text, " <x>\xff<y> ", 9);
    int r = tokenizer_encode(t, text, sizeof text, 3, &ids, &n, err);
    cr_assert((r == 0) == (ids != NULL));
    free(ids);
    return r;
}

static int write_json(struct tokenizer *t, struct error *err) {
    struct buf out = {0};
    int r = tokenizer_write_json(t, &out);
    buf_free(&out);
    return r < 0 ? error_set(err, r, "write") : r;
}

static int chat(struct tokenizer *t, struct error *err) {
    static const char text[] = "<<SYS>> [INST] bos_token";
    struct chat_template *template = NULL;
    struct buf out = {0};
    (void)t;
    int r = chat_template_new(&template, text, sizeof text - 1, err);
    cr_assert((r == 0) == (template != NULL));
    struct chat_message messages[] = {{"system", 6, "s", 1}, {"user", 4, "u", 1}};
    struct chat_prompt prompt = {messages, 2, true, "<s>", "</s>"};
    if (r == 0) r = chat_render(template, &prompt, &out, err);
    buf_free(&out);
    chat_template_free(template);
    return r;
}

static int chatml(struct tokenizer *t, struct error *err) {
    static const char text[] = "<|im_start|>system\nDefault<|im_end|>";
    struct chat_template *template = NULL;
    (void)t;
    int r = chat_template_new(&template, text, sizeof text - 1, err);
    cr_assert((r == 0) == (template != NULL));
    chat_template_free(template);
    return r;
}

static int stops(struct tokenizer *t, struct error *err) {
    struct stop s;
    (void)t;
    int r = stop_init(&s, (const char *[]){"ab", "c"}, (size_t[]){2, 1}, 2, err);
    stop_deinit(&s);
    return r;
}

static int sampler(struct tokenizer *t, struct error *err) {
    struct sampler_work *work = sampler_work_new(10);
    (void)t;
    sampler_work_free(work);
    return work ? 0 : error_set(err, -ENOMEM, "sampler");
}

Test(text_memory, everything_fails_cleanly_wherever_memory_ends) {
    static attempt_fn *const attempts[] = {parse, encode, write_json, chat, chatml, stops, sampler};
    struct tokenizer *t = NULL;
    cr_assert_eq(tokenizer_parse(&t, tiny, sizeof tiny - 1, NULL), 0);
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        for (int n = 1;; n++) {
            struct error err = {""};
            alloc_fail_at(n);
            int r = attempts[i](t, &err);
            bool hit = alloc_fail_hit();
            alloc_fail_at(0);
            if (!hit) {
                cr_expect_eq(r, 0, "attempt %zu: %s", i, err.text);
                cr_expect_gt(n, 1, "attempt %zu allocates nothing", i);
                break;
            }
            cr_assert_eq(r, -ENOMEM, "attempt %zu, allocation %d: %d %s", i, n, r, err.text);
            cr_assert_neq(err.text[0], '\0', "attempt %zu, allocation %d", i, n);
        }
    }
    tokenizer_free(t);
}
