/* The parser and the writers when memory runs out, at each allocation in turn. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/api_error.h"
#include "server/api/openai_parse.h"
#include "server/api/openai_response.h"
#include "server/api/openapi.h"
#include "server/json_quota.h"
#include "server/text.h"
#include "tests/support/alloc_fail.h"

static const struct {
    enum openai_kind kind;
    const char *body;
} cases[] = {
    {OPENAI_COMPLETION,
     "{\"prompt\":[\"a\",[1,2]],\"stop\":[\"x\",\"y\"],\"logit_bias\":{\"1\":2},\"seed\":5,"
     "\"stream_options\":{\"include_usage\":true},\"use_beam_search\":false,\"unknown\":[{}]}"},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":["
     "{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}],\"name\":\"n\"}],"
     "\"tools\":[],\"tool_choice\":\"auto\"}"},
    {OPENAI_RESPONSE, "{\"input\":\"a\",\"instructions\":\"b\"}"},
    {OPENAI_EMBEDDING, "{\"input\":[\"a\",\"b\"]}"},
    {OPENAI_TOKENIZE, "{\"prompt\":\"a\"}"},
    {OPENAI_DETOKENIZE, "{\"tokens\":[1]}"},
};

static int parse(enum openai_kind kind, const char *json) {
    struct openai_limits limits = {.models = "m", .max_prompt_tokens = 50, .vocab = 100};
    struct openai_request *r = NULL;
    struct api_error err = {.kind = API_ERROR_ENGINE};
    char body[1024];
    sampler_defaults(&limits.sampling);
    strcpy(body, json);
    int code = openai_parse(&r, kind, body, strlen(body), &limits, &err);
    cr_assert((code == 0) == (r != NULL), "%s", json);
    if (code < 0)
        cr_assert(err.kind == API_ERROR_MEMORY, "%s: %d %s", json, err.kind, err.error.text);
    openai_request_free(r);
    return code;
}

Test(openai_memory, a_request_is_read_or_refused_for_want_of_it) {
    json_quota_install(); /* so that its allocations count */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = 1;
        for (bool more = true; more; n++) {
            alloc_fail_at(n);
            int code = parse(cases[i].kind, cases[i].body);
            more = alloc_fail_hit();
            alloc_fail_at(0);
            if (!more) cr_expect(code == 0, "%s", cases[i].body);
            cr_assert(n < 1000);
        }
        cr_expect(n > 5, "%d", n);
    }
}

static void write_document(struct text *out) {
    const struct openapi_facts facts = {.vocab = 100, .hidden = 8};
    openapi_render(out, &facts);
}

static void write_response(struct text *out) {
    struct openai_request wanted = {.max_tokens = 1};
    const struct openai_response response = {
        .id = "a", .own_id = "a", .model = "m", .status = "completed", .wanted = &wanted};
    openai_response_event(out, "response.completed", 0, &response);
}

Test(openai_memory, what_is_written_incompletely_is_marked) {
    static void (*const writers[])(struct text * out) = {write_document, write_response};
    for (size_t i = 0; i < sizeof writers / sizeof *writers; i++) {
        bool more = true;
        for (int n = 1; more; n++) {
            struct text out = {0};
            alloc_fail_at(n);
            writers[i](&out);
            more = alloc_fail_hit();
            alloc_fail_at(0);
            cr_expect(out.failed == more, "%zu: allocation %d", i, n);
            text_deinit(&out);
            cr_assert(n < 10000);
        }
    }
}
