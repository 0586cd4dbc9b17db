#include "server/api/openai_parse.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "tests/support/random.h"

static struct openai_limits limits_of(void) {
    struct openai_limits limits = {.models = "m", .max_prompt_tokens = 50, .vocab = 100};
    sampler_defaults(&limits.sampling);
    limits.sampling.temperature = 0.625f;
    return limits;
}

static struct openai_request *parse(enum openai_kind kind, const char *json, size_t n) {
    struct openai_limits limits = limits_of();
    struct openai_request *r = NULL;
    struct api_error err;
    char *body = malloc(n + 1); /* exactly as long, so that sanitizers see a read past its end */
    memcpy(body, json, n);
    int code = openai_parse(&r, kind, body, n, &limits, &err);
    free(body);
    cr_assert((code == 0) == (r != NULL));
    return r;
}

Test(openai_parse, absent_fields_take_the_defaults) {
    static const char json[] = "{\"prompt\":\"a\",\"temperature\":null}";
    struct openai_request *r = parse(OPENAI_COMPLETION, json, sizeof json - 1);
    cr_assert(r);
    cr_expect(r->n_prompts == 1 && r->prompts[0].text_len == 1 && !r->prompts[0].ids);
    cr_expect(r->max_tokens == 16 && r->n == 1 && r->n_logprobs == -1 && !r->stream);
    cr_expect(r->sampling.temperature == 0.625f && !r->has_seed);
    openai_request_free(r);
}

Test(openai_parse, prompt_may_hold_nul) {
    static const char json[] = "{\"prompt\":\"a\\u0000b\"}";
    struct openai_request *r = parse(OPENAI_COMPLETION, json, sizeof json - 1);
    cr_assert(r);
    cr_expect(r->prompts[0].text_len == 3 && !memcmp(r->prompts[0].text, "a\0b", 4));
    openai_request_free(r);
}

static const char completion[] =
    "{\"model\":\"m\",\"prompt\":[\"a\\u00e9\",[1,2,99]],\"max_tokens\":5,\"n\":2,\"temperature\":"
    "1,"
    "\"seed\":18446744073709551615,\"stop\":[\"x\",\"y\"],\"stream\":true,\"stream_options\":"
    "{\"include_usage\":true},\"logit_bias\":{\"5\":-1.5},\"logprobs\":3,\"user\":\"u\"}";
static const char conversation[] =
    "{\"messages\":[{\"role\":\"developer\",\"content\":\"d\"},{\"role\":\"user\",\"content\":"
    "[{\"type\":\"text\",\"text\":\"t\"}]},{\"role\":\"assistant\",\"content\":null}],"
    "\"logprobs\":true,\"top_logprobs\":2,\"max_completion_tokens\":9}";

Test(openai_parse, every_field_arrives) {
    struct openai_request *r = parse(OPENAI_COMPLETION, completion, sizeof completion - 1);
    cr_assert(r);
    cr_expect(r->n_prompts == 2 && r->prompts[1].n_ids == 3 && r->prompts[1].ids[2] == 99);
    cr_expect(r->seed == UINT64_MAX && r->has_seed && r->n_stops == 2 && r->n_logprobs == 3);
    cr_expect(r->stream && r->include_usage && r->n_bias == 1 && r->bias[0].value == -1.5f);
    openai_request_free(r);
    r = parse(OPENAI_CHAT, conversation, sizeof conversation - 1);
    cr_assert(r);
    cr_expect(r->n_messages == 3 && !strcmp(r->messages[0].role, "system"));
    cr_expect(!strcmp(r->messages[2].content, "") && r->n_logprobs == 2 && r->max_tokens == 9);
    openai_request_free(r);
}

/* Whatever comes, it is taken or refused; the sanitizers watch. */
Test(openai_parse, damaged_bodies_do_no_harm) {
    uint64_t seed = 1;
    char body[512];
    for (int i = 0; i < 20000; i++) {
        enum openai_kind kind = i % 2 ? OPENAI_CHAT : OPENAI_COMPLETION;
        const char *from = i % 2 ? conversation : completion;
        size_t n = strlen(from);
        memcpy(body, from, n);
        for (int k = random_range(&seed, 1, 4); k > 0; k--) {
            size_t at = random_next(&seed) % n;
            static const char bytes[] = "\"\\{}[]:,0-9e.\0\xff u";
            if (random_next(&seed) % 4)
                body[at] = bytes[random_next(&seed) % (sizeof bytes - 1)];
            else
                n = at + 1;
        }
        openai_request_free(parse(kind, body, n));
    }
}

Test(openai_parse, max_completion_tokens_beats_max_tokens_wherever_it_stands) {
    static const char *const members[] = {"\"max_tokens\":5,\"max_completion_tokens\":9",
                                          "\"max_completion_tokens\":9,\"max_tokens\":5",
                                          "\"max_completion_tokens\":9", "\"max_tokens\":9"};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        char body[160];
        snprintf(body, sizeof body, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],%s}",
                 members[i]);
        struct openai_request *r = parse(OPENAI_CHAT, body, strlen(body));
        cr_expect(r && r->max_tokens == 9, "%s", members[i]);
        openai_request_free(r);
    }
}

/* Each choice has its own copy: thousands of empty messages are many bytes, too. */
Test(openai_parse, messages_times_choices_are_bounded) {
    static const char message[] = "{\"role\":\"user\",\"content\":\"\"}";
    for (int n = 1; n <= 128; n += 127) {
        char *body = malloc(10000 * sizeof message + 64), *at = body;
        at += sprintf(at, "{\"n\":%d,\"messages\":[", n);
        for (int i = 0; i < 10000; i++) at += sprintf(at, i ? ",%s" : "%s", message);
        at += sprintf(at, "]}");
        struct openai_request *r = parse(OPENAI_CHAT, body, (size_t)(at - body));
        cr_expect_eq(r != NULL, n == 1);
        openai_request_free(r);
        free(body);
    }
}

Test(openai_parse, more_choices_than_places_are_a_mistake_and_no_overload) {
    struct openai_limits limits = limits_of();
    limits.max_choices = 4;
    for (int n = 4; n <= 5; n++) {
        char body[64];
        struct openai_request *r = NULL;
        struct api_error err;
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"n\":%d}", n);
        int code = openai_parse(&r, OPENAI_COMPLETION, body, strlen(body), &limits, &err);
        cr_expect_eq(code == 0, n == 4);
        if (code < 0) cr_expect_str_eq(err.param, "n");
        openai_request_free(r);
    }
}
