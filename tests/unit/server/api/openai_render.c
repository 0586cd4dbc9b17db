#include "server/api/openai_render.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "server/api/openai_logprobs.h"
#include "server/text.h"

static const struct openai_render completion = {.kind = OPENAI_COMPLETION,
                                                .id = "cmpl-1",
                                                .model = "m\"",
                                                .fingerprint = "fp",
                                                .created = 7,
                                                .stream = true};
static const struct openai_render chat = {.kind = OPENAI_CHAT,
                                          .id = "chatcmpl-1",
                                          .model = "m",
                                          .fingerprint = "fp",
                                          .created = 7,
                                          .stream = true,
                                          .usage_key = true};

static void expect(struct text *t, const char *expected) {
    cr_expect(t->n == strlen(expected) && !strcmp(t->data, expected), "%s\nis not\n%s", t->data,
              expected);
    text_deinit(t);
}

Test(openai_render, chunks_of_a_completion) {
    struct text head = {0}, out = {0};
    struct openai_delta delta = {.index = 2, .text = "a\"", .text_len = 2};
    openai_render_head(&head, &completion);
    openai_render_chunk(&out, &completion, &head, &delta);
    expect(&out, "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":7,"
                 "\"model\":\"m\\\"\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":2,"
                 "\"text\":\"a\\\"\","
                 "\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    delta = (struct openai_delta){.finish = "stop"};
    openai_render_chunk(&out, &completion, &head, &delta);
    expect(
        &out,
        "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":7,"
        "\"model\":\"m\\\"\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"text\":\"\","
        "\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n");
    text_deinit(&head);
}

#define USAGE                                                                                      \
    "{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7,"                             \
    "\"prompt_tokens_details\":{\"cached_tokens\":2}}"
#define CHAT_HEAD                                                                                  \
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,"             \
    "\"model\":\"m\",\"system_fingerprint\":\"fp\",\"choices\":["

Test(openai_render, chunks_of_a_chat) {
    struct text head = {0}, out = {0};
    struct openai_delta delta = {
        .text = "a", .text_len = 1, .logprobs = "{}", .logprobs_len = 2, .finish = "length"};
    openai_render_head(&head, &chat);
    const struct openai_delta role = {.index = 1};
    openai_render_role(&out, &chat, &head, &role);
    expect(&out, CHAT_HEAD "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                           "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n");
    openai_render_chunk(&out, &chat, &head, &delta);
    expect(&out, CHAT_HEAD "{\"index\":0,\"delta\":{\"content\":\"a\"},\"logprobs\":{},"
                           "\"finish_reason\":\"length\"}],\"usage\":null}\n\n");
    const struct openai_usage usage = {3, 4, 2};
    openai_render_usage_chunk(&out, &head, &usage);
    expect(&out, CHAT_HEAD "],\"usage\":" USAGE "}\n\n");
    delta = (struct openai_delta){.text = "b",
                                  .text_len = 1,
                                  .extra = ",\"token_ids\":[5]",
                                  .top = ",\"a\":1",
                                  .usage = &usage};
    openai_render_chunk(&out, &chat, &head, &delta);
    expect(&out,
           CHAT_HEAD "{\"index\":0,\"delta\":{\"content\":\"b\"},\"logprobs\":null,"
                     "\"finish_reason\":null,\"token_ids\":[5]}],\"a\":1,\"usage\":" USAGE "}\n\n");
    text_deinit(&head);
}

static const char *piece(const void *arg, int32_t id, size_t *ret_n) {
    static const char *const pieces[] = {"a", "\xc3", "\xa9\"", NULL};
    (void)arg;
    *ret_n = pieces[id] ? strlen(pieces[id]) : 0;
    return pieces[id];
}

static void add_tokens(struct openai_logprobs *l, enum openai_kind kind) {
    for (int32_t id = 0; id < 4; id++) {
        struct engine_token token = {.id = id, .logprob = -1.5f, .n_top = 1, .top_ids = {id}};
        token.top_logprobs[0] = id == 3 ? -INFINITY : -0.25f;
        openai_logprobs_add(l, kind, &token, piece, NULL);
    }
}

Test(openai_logprobs, completions_have_four_lists) {
    struct openai_logprobs l = {0};
    struct text out = {0};
    add_tokens(&l, OPENAI_COMPLETION);
    openai_logprobs_flush(&l, OPENAI_COMPLETION, &out);
    expect(&out, "{\"tokens\":[\"a\",\"bytes:\\\\xc3\",\"bytes:\\\\xa9\\\\x22\",\"\"],"
                 "\"token_logprobs\":[-1.5,-1.5,-1.5,-1.5],"
                 "\"top_logprobs\":[{\"a\":-0.25},{\"bytes:\\\\xc3\":-0.25},"
                 "{\"bytes:\\\\xa9\\\\x22\":-0.25},{\"\":-9999}],"
                 "\"text_offset\":[0,1,2,3]}");
    cr_expect(l.n == 0 && l.offset == 3);
    openai_logprobs_deinit(&l);
}

/* The token itself is among the best of a completion even when it is none of them. */
Test(openai_logprobs, a_completion_always_tells_the_own_token) {
    struct openai_logprobs l = {0};
    struct text out = {0};
    struct engine_token token = {.id = 0, .logprob = -3};
    openai_logprobs_add(&l, OPENAI_COMPLETION, &token, piece, NULL);
    token.logprob = NAN;
    openai_logprobs_add(&l, OPENAI_COMPLETION, &token, piece, NULL);
    openai_logprobs_flush(&l, OPENAI_COMPLETION, &out);
    expect(&out, "{\"tokens\":[\"a\",\"a\"],\"token_logprobs\":[-3,null],"
                 "\"top_logprobs\":[{\"a\":-3},null],\"text_offset\":[0,1]}");
    openai_logprobs_deinit(&l);
}

Test(openai_logprobs, a_prompt_is_told_by_ids_and_ranks) {
    struct text out = {0};
    struct engine_token token = {.id = 0, .logprob = -3, .n_top = 2, .top_ids = {1, 0}};
    token.top_logprobs[0] = -1;
    token.top_logprobs[1] = -3;
    openai_logprobs_prompt(&out, &token, 1, piece, NULL);
    expect(&out, "{\"0\":{\"logprob\":-3,\"rank\":2,\"decoded_token\":\"a\"},"
                 "\"1\":{\"logprob\":-1,\"rank\":1,\"decoded_token\":\"\xef\xbf\xbd\"}}");
    openai_logprobs_prompt(&out, &token, 2, piece, NULL);
    expect(&out, "{\"1\":{\"logprob\":-1,\"rank\":1,\"decoded_token\":\"\xef\xbf\xbd\"},"
                 "\"0\":{\"logprob\":-3,\"rank\":2,\"decoded_token\":\"a\"}}");
    token.n_top = 0;
    openai_logprobs_prompt(&out, &token, 0, piece, NULL);
    expect(&out, "{\"0\":{\"logprob\":-3,\"rank\":null,\"decoded_token\":\"a\"}}");
    token.logprob = NAN;
    openai_logprobs_prompt(&out, &token, 0, piece, NULL);
    expect(&out, "null");
}

/* Each of the offsets is that of the token's text in the choice's text, where special tokens
 * have none. */
Test(openai_logprobs, hidden_tokens_take_no_room_in_the_text) {
    struct openai_logprobs l = {0};
    struct text out = {0};
    struct engine_token hidden = {.id = 0, .hidden = true, .logprob = -1};
    openai_logprobs_add(&l, OPENAI_COMPLETION, &hidden, piece, NULL);
    add_tokens(&l, OPENAI_COMPLETION);
    openai_logprobs_flush(&l, OPENAI_COMPLETION, &out);
    cr_expect(strstr(out.data, "\"text_offset\":[0,0,1,2,3]}") != NULL);
    openai_logprobs_deinit(&l);
    text_deinit(&out);
}

Test(openai_logprobs, chats_have_objects_with_bytes) {
    struct openai_logprobs l = {0};
    struct text out = {0};
    struct engine_token token = {.id = 2, .logprob = -1, .n_top = 1, .top_ids = {0}};
    openai_logprobs_add(&l, OPENAI_CHAT, &token, piece, NULL);
    openai_logprobs_flush(&l, OPENAI_CHAT, &out);
    expect(&out, "{\"content\":[{\"token\":\"\xef\xbf\xbd\\\"\",\"logprob\":-1,\"bytes\":[169,34],"
                 "\"top_logprobs\":[{\"token\":\"a\",\"logprob\":0,\"bytes\":[97]}]}],"
                 "\"refusal\":null}");
    openai_logprobs_deinit(&l);
}
