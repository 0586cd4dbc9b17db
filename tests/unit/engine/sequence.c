#include "engine/sequence.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine_texts.h"
#include "engine/map.h"
#include "engine/source.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/tiny_source.h"

enum { CONTEXT = 64, END = 256 };

/* A model's texts, and the sequence under test. */
struct bench {
    struct source *src;
    struct engine_texts texts;
    struct sequence_shape shape;
    struct sequence *s;
    struct buf text;
    int n_tokens;
    int32_t tokens[CONTEXT];
};

static void bench_open(struct bench *b, bool with_tokenizer) {
    struct error err = {""};
    *b = (struct bench){.src = tiny_source_open(CONTEXT, with_tokenizer)};
    cr_assert_eq(engine_texts_open(&b->texts, b->src, &err), 0, "%s", err.text);
    b->shape = (struct sequence_shape){.context = CONTEXT,
                                       .vocab = 258,
                                       .ends = b->texts.ends,
                                       .n_ends = b->texts.n_ends,
                                       .tokenizer = b->texts.tokenizer,
                                       .chat = b->texts.chat,
                                       .bos = b->texts.bos,
                                       .eos = b->texts.eos};
}

static void bench_close(struct bench *b) {
    sequence_free(b->s);
    buf_free(&b->text);
    engine_texts_close(&b->texts);
    source_close(b->src);
}

static struct engine_request *text_request(const char *text) {
    struct engine_request *request = engine_request_new();
    request->text = strdup(text);
    request->text_len = strlen(text);
    return request;
}

static void add_stop(struct engine_request *request, const char *text) {
    request->stops[request->n_stops++] = strdup(text);
}

static int bench_start(struct bench *b, struct engine_request *request) {
    struct error err = {""};
    int r = sequence_new(&b->s, &b->shape, request, &err);
    if (r < 0) {
        cr_expect_neq(err.text[0], 0);
        engine_request_free(request);
    }
    return r;
}

static void bench_take(struct bench *b) {
    buf_append(&b->text, b->s->text.data, b->s->text.len);
    for (int i = 0; i < b->s->n_ready; i++) b->tokens[b->n_tokens++] = b->s->reports[i].token.id;
    sequence_taken(b->s);
}

static void bench_push(struct bench *b, int32_t id) {
    cr_assert_not(b->s->ended);
    cr_assert_eq(sequence_push(b->s, &(struct sampler_result){.id = id}), 0);
    bench_take(b);
}

static void bench_push_text(struct bench *b, const char *text) {
    for (; *text && !b->s->ended; text++) bench_push(b, (unsigned char)*text);
}

static const char *bench_text(const struct bench *b) { return b->text.data ? b->text.data : ""; }

Test(sequence, tokenizes_its_prompt) {
    struct bench b;
    bench_open(&b, true);
    cr_assert_eq(bench_start(&b, text_request("ab<|im_end|>c")), 0);
    int32_t want[] = {'a', 'b', END, 'c'};
    cr_expect_eq(b.s->n_prompt, 4);
    cr_expect_eq(memcmp(b.s->tokens, want, sizeof want), 0);
    cr_expect_eq(b.s->n_max, CONTEXT);
    bench_close(&b);
}

Test(sequence, the_beginning_of_text_can_be_left_out) {
    struct bench b;
    struct map file;
    struct tokenizer *llama = NULL;
    struct error err = {""};
    char path[512];
    snprintf(path, sizeof path, "%s/tokenizers/llama3/tokenizer.json", getenv("GPTQT_FIXTURES"));
    cr_assert_eq(map_open(&file, path, &err), 0, "%s", err.text);
    cr_assert_eq(tokenizer_parse(&llama, (const char *)file.bytes, file.size, &err), 0, "%s",
                 err.text);
    map_close(&file);
    int32_t first[2];
    int n[2];
    for (int i = 0; i < 2; i++) {
        bench_open(&b, true);
        b.shape.tokenizer = llama;
        b.shape.vocab = 1 << 20;
        struct engine_request *request = text_request("Hello");
        request->no_special = i == 1;
        cr_assert_eq(bench_start(&b, request), 0);
        first[i] = b.s->tokens[0];
        n[i] = b.s->n_prompt;
        bench_close(&b);
    }
    cr_expect(tokenizer_is_special(llama, first[0]) && !tokenizer_is_special(llama, first[1]));
    cr_expect_eq(n[0], n[1] + 1);
    tokenizer_free(llama);
}

Test(sequence, renders_a_chat) {
    struct bench b;
    bench_open(&b, true);
    struct engine_request *request = engine_request_new();
    request->echo = true;
    request->n_messages = 1;
    request->messages = calloc(1, sizeof *request->messages);
    request->messages[0].role = strdup("user");
    request->messages[0].content = strdup("hi");
    cr_assert_eq(bench_start(&b, request), 0);
    bench_take(&b);
    cr_expect_str_eq(bench_text(&b), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    cr_expect_eq(b.s->tokens[0], 257);
    cr_expect_eq(b.s->n_prompt, 5 + 1 + 2 + 1 + 1 + 1 + 10);
    bench_close(&b);
}

Test(sequence, refuses_prompts_that_cannot_run) {
    struct bench b;
    char longest[CONTEXT + 1];
    memset(longest, 'x', sizeof longest);
    longest[CONTEXT] = 0;
    bench_open(&b, true);
    cr_expect_eq(bench_start(&b, text_request("")), -EINVAL);
    cr_expect_eq(bench_start(&b, text_request(longest)), -E2BIG);
    cr_expect_eq(bench_start(&b, text_request(longest + 1)), 0);
    cr_expect_eq(b.s->n_max - b.s->n_prompt, 1);
    bench_close(&b);
}

Test(sequence, ends_at_max_tokens) {
    struct bench b;
    bench_open(&b, true);
    struct engine_request *request = text_request("a");
    request->max_tokens = 3;
    cr_assert_eq(bench_start(&b, request), 0);
    bench_push_text(&b, "xyz!");
    cr_expect(b.s->ended);
    cr_expect_eq(b.s->finish, FINISH_LENGTH);
    cr_expect_eq(sequence_generated(b.s), 3);
    cr_expect_str_eq(bench_text(&b), "xyz");
    bench_close(&b);
}

Test(sequence, ends_at_the_context_length) {
    struct bench b;
    bench_open(&b, true);
    struct engine_request *request = text_request("abcd");
    request->max_tokens = INT32_MAX;
    cr_assert_eq(bench_start(&b, request), 0);
    while (!b.s->ended) bench_push(&b, 'x');
    cr_expect_eq(b.s->finish, FINISH_LENGTH);
    cr_expect_eq(b.s->n_tokens, CONTEXT);
    bench_close(&b);
}

Test(sequence, an_end_token_ends_it_without_text) {
    struct bench b;
    bench_open(&b, true);
    cr_assert_eq(bench_start(&b, text_request("a")), 0);
    bench_push_text(&b, "hi");
    bench_push(&b, END);
    cr_expect(b.s->ended);
    cr_expect_eq(b.s->finish, FINISH_STOP);
    cr_expect_str_eq(bench_text(&b), "hi");
    cr_expect_eq(sequence_generated(b.s), 3);
    bench_close(&b);
}

Test(sequence, ignore_eos_makes_end_tokens_ordinary) {
    struct bench b;
    bench_open(&b, true);
    struct engine_request *request = text_request("a");
    request->ignore_eos = true;
    cr_assert_eq(bench_start(&b, request), 0);
    bench_push(&b, END);
    bench_push_text(&b, "on");
    cr_expect_not(b.s->ended);
    cr_expect_str_eq(bench_text(&b), "on");
    bench_close(&b);
}

Test(sequence, min_tokens_keeps_end_tokens_out) {
    struct bench b;
    float logits[258] = {0};
    struct sampler_work *work = sampler_work_new(258);
    logits[END] = 100;
    logits['q'] = 50;
    bench_open(&b, true);
    struct engine_request *request = text_request("a");
    request->min_tokens = 2;
    request->sampling.temperature = 0;
    cr_assert_eq(bench_start(&b, request), 0);
    for (int i = 0; i < 3; i++) cr_assert_eq(sequence_sample(b.s, work, logits), 0);
    bench_take(&b);
    cr_expect(b.s->ended);
    cr_expect_str_eq(bench_text(&b), "qq");
    sampler_work_free(work);
    bench_close(&b);
}

Test(sequence, stop_strings_are_found_across_tokens) {
    struct bench b;
    bench_open(&b, true);
    struct engine_request *request = text_request("a");
    request->n_logprobs = 0;
    add_stop(request, "STOP");
    cr_assert_eq(bench_start(&b, request), 0);
    bench_push_text(&b, "one ST");
    cr_expect_str_eq(bench_text(&b), "one ");
    cr_expect_eq(b.n_tokens, 4);
    bench_push_text(&b, "AST");
    cr_expect_str_eq(bench_text(&b), "one STA");
    cr_expect_eq(b.n_tokens, 7);
    bench_push_text(&b, "OP and more");
    cr_expect(b.s->ended);
    cr_expect_eq(b.s->finish, FINISH_STOP);
    cr_expect_str_eq(bench_text(&b), "one STA");
    cr_expect_eq(b.n_tokens, 7);
    cr_expect_eq(sequence_generated(b.s), 11);
    bench_close(&b);
}

Test(sequence, what_was_held_back_comes_at_the_end) {
    struct bench b;
    enum engine_finish how[] = {FINISH_LENGTH, FINISH_STOP, FINISH_CANCELLED};
    for (int i = 0; i < 3; i++) {
        bench_open(&b, true);
        struct engine_request *request = text_request("a");
        request->max_tokens = 5;
        request->n_logprobs = 0;
        add_stop(request, "STOPPED");
        cr_assert_eq(bench_start(&b, request), 0);
        bench_push_text(&b, "xSTO");
        cr_expect_str_eq(bench_text(&b), "x");
        if (how[i] == FINISH_CANCELLED)
            cr_expect_eq(sequence_end(b.s, FINISH_CANCELLED), 0);
        else
            bench_push(&b, how[i] == FINISH_STOP ? END : 'P');
        bench_take(&b);
        cr_expect(b.s->ended);
        cr_expect_eq(b.s->finish, how[i]);
        cr_expect_str_eq(bench_text(&b), how[i] == FINISH_LENGTH ? "xSTOP" : "xSTO");
        cr_expect_eq(b.n_tokens, how[i] == FINISH_LENGTH ? 5 : 4);
        bench_close(&b);
    }
}

Test(sequence, characters_are_never_split) {
    struct bench b;
    bench_open(&b, true);
    struct engine_request *request = text_request("a");
    request->n_logprobs = 0;
    cr_assert_eq(bench_start(&b, request), 0);
    bench_push(&b, 0xe2);
    bench_push(&b, 0x82);
    cr_expect_str_eq(bench_text(&b), "");
    cr_expect_eq(b.n_tokens, 0);
    bench_push(&b, 0xac);
    cr_expect_str_eq(bench_text(&b), "\xe2\x82\xac");
    cr_expect_eq(b.n_tokens, 3);
    bench_push(&b, 0xe2);
    bench_push(&b, END);
    cr_expect_str_eq(bench_text(&b), "\xe2\x82\xac\xef\xbf\xbd");
    cr_expect_eq(b.n_tokens, 4);
    bench_close(&b);
}

Test(sequence, echoes_ids_and_text) {
    struct bench b;
    int32_t ids[] = {'h', 'i', 0xff};
    bench_open(&b, true);
    struct engine_request *request = engine_request_new();
    request->ids = malloc(sizeof ids);
    memcpy(request->ids, ids, sizeof ids);
    request->n_ids = 3;
    request->echo = true;
    add_stop(request, "h");
    cr_assert_eq(bench_start(&b, request), 0);
    bench_take(&b);
    cr_expect_str_eq(bench_text(&b), "hi\xef\xbf\xbd");
    cr_expect_not(b.s->ended, "stop strings are for what is generated");
    bench_close(&b);
}

Test(sequence, without_a_tokenizer_it_reports_ids) {
    struct bench b;
    bench_open(&b, false);
    struct engine_request *request = engine_request_new();
    request->ids = calloc(1, sizeof *request->ids);
    request->n_ids = 1;
    cr_assert_eq(bench_start(&b, request), 0);
    bench_push(&b, 7);
    bench_push(&b, 9);
    cr_expect_eq(b.n_tokens, 2);
    cr_expect_eq(b.tokens[1], 9);
    bench_push(&b, END);
    cr_expect(b.s->ended);
    cr_expect_eq(b.n_tokens, 2);
    bench_close(&b);
}

Test(sequence, equal_seeds_give_equal_tokens) {
    int32_t first[CONTEXT] = {0};
    struct sampler_work *work = sampler_work_new(258);
    for (int run = 0; run < 3; run++) {
        struct bench b;
        float logits[258];
        bench_open(&b, true);
        struct engine_request *request = text_request("seed");
        request->seed = run < 2 ? 42 : 43;
        cr_assert_eq(bench_start(&b, request), 0);
        for (int i = 0; i < 20; i++) {
            for (int j = 0; j < 258; j++) logits[j] = j == END ? -100 : 0;
            cr_assert_eq(sequence_sample(b.s, work, logits), 0);
        }
        if (run == 0) memcpy(first, b.s->tokens, 24 * sizeof *first);
        cr_expect_eq(memcmp(first, b.s->tokens, 24 * sizeof *first) == 0, run < 2);
        bench_close(&b);
    }
    sampler_work_free(work);
}
