#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"
#define CHAT        "/v1/chat/completions"

static const char *const quiet[] = {"--log-level", "error", NULL};

static void expect_string(struct client_server s, const char *path, const char *body,
                          const char *member, const char *expected) {
    json_t *root = client_json(s, path, body, 200);
    const char *string = client_string(root, member);
    cr_expect(!strcmp(string, expected), "%s: %s is '%s', not '%s'", body, member, string,
              expected);
    json_decref(root);
}

Test(completions, answer_in_one_piece) {
    static const struct {
        const char *path, *body, *member, *expected;
    } cases[] = {
        {COMPLETIONS, "{\"prompt\":\"h\\u00e9llo \\\"x\\\"\\n\"}", "choices.0.text",
         "h\xc3\xa9llo \"x\"\n"},
        {COMPLETIONS, "{\"prompt\":\"abc\"}", "object", "text_completion"},
        {COMPLETIONS, "{\"prompt\":\"abc\"}", "model", "builtin"},
        {COMPLETIONS, "{\"prompt\":\"abc\"}", "choices.0.finish_reason", "stop"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"max_tokens\":2}", "choices.0.text", "ab"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"max_tokens\":2}", "choices.0.finish_reason", "length"},
        {COMPLETIONS, "{\"prompt\":\"0123456789abcdefXYZ\"}", "choices.0.text", "0123456789abcdef"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"echo\":true}", "choices.0.text", "abcabc"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"stop\":\"c\"}", "choices.0.text", "ab"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"stop\":[\"x\",\"b\"]}", "choices.0.text", "a"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"ignore_eos\":true,\"max_tokens\":5}", "choices.0.text",
         "abcab"},
        {COMPLETIONS, "{\"prompt\":[97,98]}", "choices.0.text", "ab"},
        {COMPLETIONS, "{\"prompt\":[97.0,98],\"max_tokens\":1.0}", "choices.0.text", "a"},
        {COMPLETIONS, "{\"prompt\":[[97,98],[99]]}", "choices.1.text", "c"},
        {COMPLETIONS, "{\"prompt\":[\"ab\",\"cd\"],\"n\":2}", "choices.2.text", "cd"},
        {COMPLETIONS, "{\"prompt\":[\"ab\",[99,100]]}", "choices.1.text", "cd"},
        {COMPLETIONS, "{\"prompt\":\"@seed\",\"seed\":18446744073709551615,\"max_tokens\":30}",
         "choices.0.text", "18446744073709551615"},
        {COMPLETIONS, "{\"prompt\":\"@seed\",\"seed\":-1,\"max_tokens\":30}", "choices.0.text",
         "18446744073709551615"},
        {COMPLETIONS, "{\"prompt\":\"@seed\",\"seed\":7,\"n\":3}", "choices.2.text", "9"},
        {COMPLETIONS,
         "{\"prompt\":\"@params\",\"max_tokens\":99,\"temperature\":0.5,\"top_p\":0.25,\"top_k\":3,"
         "\"min_p\":0.125,\"frequency_penalty\":-2,\"presence_penalty\":1.5,"
         "\"repetition_penalty\":1.25,\"logit_bias\":{\"1\":2,\"3\":-4},\"min_tokens\":1}",
         "choices.0.text", "0.5 0.25 3 0.125 -2 1.5 1.25 2 1 0"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"max_tokens\":0}", "choices.0.text", ""},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"max_tokens\":0,\"echo\":true}", "choices.0.text",
         "abc"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"max_tokens\":0}", "choices.0.finish_reason", "length"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"stop\":[\"x\",\"c\"]}", "choices.0.stop_reason", "c"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"stop\":\"b\",\"include_stop_str_in_output\":true}",
         "choices.0.text", "ab"},
        {COMPLETIONS, "{\"prompt\":\"abc\",\"stop_token_ids\":[1,98]}", "choices.0.text", "a"},
        {COMPLETIONS, "{\"prompt\":\"@best\",\"seed\":4,\"best_of\":4}", "choices.0.text", "7"},
        {COMPLETIONS, "{\"prompt\":\"@best\",\"seed\":4,\"best_of\":4,\"n\":2}", "choices.1.text",
         "6"},
        {COMPLETIONS, "{\"prompt\":[\"@best\",\"x\"],\"seed\":6,\"best_of\":3}", "choices.0.text",
         "7"},
        {COMPLETIONS, "{\"prompt\":[\"@best\",\"x\"],\"seed\":6,\"best_of\":3}", "choices.1.text",
         "x"},
        {COMPLETIONS, "{\"prompt\":\"@claim\",\"max_tokens\":99}", "choices.0.text", "0 0 0 0 0"},
        {COMPLETIONS,
         "{\"prompt\":\"@claim\",\"max_tokens\":99,\"priority\":-7,\"cache_salt\":\"s\",\"n\":2,"
         "\"truncate_prompt_tokens\":-1,\"add_special_tokens\":false,"
         "\"skip_special_tokens\":false}",
         "choices.1.text", "-7 1 -1 1 1"},
        {COMPLETIONS, "{\"prompt\":\"a\",\"request_id\":\"my:1\"}", "id", "cmpl-my:1"},
        {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
         "choices.0.message.content", "hi"},
        {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", "object",
         "chat.completion"},
        {CHAT,
         "{\"messages\":[{\"role\":\"system\",\"content\":\"be\"},{\"role\":\"user\",\"content\":"
         "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}",
         "choices.0.message.content", "a\nb"},
        {CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"max_completion_tokens\":2}",
         "choices.0.message.content", "he"},
        {CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"ab\"}],\"logprobs\":true,"
         "\"top_logprobs\":2}",
         "choices.0.logprobs.content.1.top_logprobs.1.token", "c"},
    };
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_string(s, cases[i].path, cases[i].body, cases[i].member, cases[i].expected);
    client_stop(s);
}

Test(completions, usage_counts_a_prompt_once) {
    struct client_server s = client_start(quiet);
    json_t *root = client_json(s, COMPLETIONS, "{\"prompt\":[\"ab\",\"cde\"],\"n\":2}", 200);
    cr_expect(json_array_size(client_at(root, "choices")) == 4);
    cr_expect(json_integer_value(client_at(root, "usage.prompt_tokens")) == 5);
    cr_expect(json_integer_value(client_at(root, "usage.completion_tokens")) == 10);
    cr_expect(json_integer_value(client_at(root, "usage.total_tokens")) == 15);
    json_decref(root);
    client_stop(s);
}

Test(completions, logprobs_have_parallel_lists) {
    struct client_server s = client_start(quiet);
    json_t *root = client_json(s, COMPLETIONS, "{\"prompt\":\"a\\u00e9b\",\"logprobs\":2}", 200);
    const json_t *l = client_at(root, "choices.0.logprobs");
    cr_expect(json_array_size(client_at(l, "tokens")) == 4);
    cr_expect(!strcmp(client_string(l, "tokens.1"), "bytes:\\xc3"));
    cr_expect(json_integer_value(client_at(l, "text_offset.3")) == 2);
    cr_expect(json_real_value(client_at(l, "token_logprobs.0")) == -0.5);
    cr_expect(json_real_value(client_at(l, "top_logprobs.0.b")) == -1.5);
    json_decref(root);
    client_stop(s);
}

static double number(const json_t *root, const char *path) {
    const json_t *value = client_at(root, path);
    cr_expect(json_is_number(value), "%s is no number", path);
    return json_number_value(value);
}

/* What evaluation harnesses ask: the prompt's own probabilities, in the lists of the text. */
Test(completions, echo_has_the_prompts_logprobs) {
    static const char *const bodies[] = {
        "{\"prompt\":\"a\\u00e9\",\"logprobs\":1,\"echo\":true,\"max_tokens\":1}",
        "{\"prompt\":[97,195,169],\"logprobs\":1,\"echo\":true,\"max_tokens\":1}"};
    struct client_server s = client_start(quiet);
    for (int i = 0; i < 2; i++) {
        json_t *root = client_json(s, COMPLETIONS, bodies[i], 200);
        const json_t *l = client_at(root, "choices.0.logprobs");
        cr_expect_str_eq(client_string(root, "choices.0.text"), "a\xc3\xa9"
                                                                "a");
        cr_expect(json_array_size(client_at(l, "tokens")) == 4);
        cr_expect(json_array_size(client_at(l, "text_offset")) == 4);
        cr_expect(json_is_null(client_at(l, "token_logprobs.0")));
        cr_expect(json_is_null(client_at(l, "top_logprobs.0")));
        cr_expect(number(l, "token_logprobs.1") == -0.25);
        cr_expect(number(l, "token_logprobs.3") == -0.5);
        cr_expect(number(l, "text_offset.3") == 2);
        json_decref(root);
    }
    client_stop(s);
}

Test(completions, what_other_servers_add_is_there) {
    struct client_server s = client_start(quiet);
    json_t *root = client_json(
        s, COMPLETIONS, "{\"prompt\":\"ab\",\"prompt_logprobs\":2,\"return_token_ids\":true}", 200);
    cr_expect(json_is_null(client_at(root, "choices.0.prompt_logprobs.0")));
    cr_expect(number(root, "choices.0.prompt_logprobs.1.98.logprob") == -0.25);
    cr_expect(number(root, "choices.0.prompt_logprobs.1.99.rank") == 2);
    cr_expect_str_eq(client_string(root, "choices.0.prompt_logprobs.1.98.decoded_token"), "b");
    cr_expect(number(root, "choices.0.token_ids.1") == 98);
    cr_expect(number(root, "choices.0.prompt_token_ids.0") == 97);
    cr_expect(json_is_null(client_at(root, "choices.0.logprobs")));
    json_decref(root);
    root = client_json(s, CHAT,
                       "{\"messages\":[{\"role\":\"user\",\"content\":\"@cached\"}],"
                       "\"return_token_ids\":true,\"prompt_logprobs\":0}",
                       200);
    cr_expect(number(root, "usage.prompt_tokens_details.cached_tokens") == 3);
    cr_expect(number(root, "prompt_token_ids.0") == '@');
    cr_expect(number(root, "choices.0.token_ids.0") == '@');
    cr_expect(json_array_size(client_at(root, "prompt_logprobs")) == 7);
    cr_expect(!strncmp(client_string(root, "system_fingerprint"), "fp_", 3));
    json_decref(root);
    root = client_json(s, COMPLETIONS, "{\"prompt\":\"abc\",\"stop_token_ids\":[98]}", 200);
    cr_expect(number(root, "choices.0.stop_reason") == 98);
    json_decref(root);
    client_stop(s);
}

Test(completions, streams_add_it_too) {
    struct client_server s = client_start(quiet);
    struct client_reply r = client_call(
        s, COMPLETIONS,
        "{\"prompt\":\"ab\",\"stream\":true,\"return_token_ids\":true,\"echo\":true,\"logprobs\":0,"
        "\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}}");
    cr_expect(strstr(r.body,
                     "\"text\":\"ab\",\"logprobs\":{\"tokens\":[\"a\",\"b\"],\"token_logprobs\":"
                     "[null,-0.25]"),
              "%s", r.body);
    cr_expect(strstr(r.body, "\"token_ids\":[97],\"prompt_token_ids\":[97,98]}]"), "%s", r.body);
    cr_expect(strstr(r.body, "\"token_ids\":[98]}],\"usage\":{\"prompt_tokens\":2,"
                             "\"completion_tokens\":2,"),
              "%s", r.body);
    client_reply_free(&r);
    r = client_call(s, CHAT,
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"ab\"}],\"stream\":true,"
                    "\"return_token_ids\":true,\"stop\":\"b\"}");
    cr_expect(strstr(r.body, "\"finish_reason\":null}],\"prompt_token_ids\":[97,98]}\n\n"), "%s",
              r.body);
    cr_expect(strstr(r.body, "\"finish_reason\":\"stop\",\"stop_reason\":\"b\"}]}\n\n"), "%s",
              r.body);
    client_reply_free(&r);
    client_stop(s);
}

Test(completions, stream_gives_token_by_token) {
    struct client_server s = client_start(quiet);
    struct client c = client_open(s);
    client_post(&c, COMPLETIONS, "{\"prompt\":\"@gate\",\"stream\":true,\"max_tokens\":26}");
    cr_assert(client_expect(&c, "text/event-stream"));
    for (char letter = 'a'; letter <= 'z'; letter++) {
        char text[32];
        json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"@open 1\"}", 200));
        snprintf(text, sizeof text, "\"text\":\"%c\"", letter);
        cr_assert(client_expect(&c, text), "no %c", letter);
        snprintf(text, sizeof text, "\"text\":\"%c\"", letter + 1);
        cr_assert(!strstr(c.data, text), "%c is too early", letter + 1);
    }
    cr_assert(client_expect(&c, "\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n"));
    cr_assert(client_expect(&c, "data: [DONE]\n\n"));
    client_close(&c);
    client_stop(s);
}

/* Each event's JSON in turn; the text of all of choice 0 together. */
static int read_stream(const char *body, const char *member, char *text, size_t size) {
    int n = 0;
    text[0] = 0;
    for (const char *p = body; (p = strstr(p, "data: ")); n++) {
        p += 6;
        const char *end = strstr(p, "\n\n");
        cr_assert(end);
        if (!strncmp(p, "[DONE]", 6)) continue;
        json_t *event = json_loadb(p, (size_t)(end - p), 0, NULL);
        cr_assert(event, "%.*s", (int)(end - p), p);
        strncat(text, client_string(event, member), size - strlen(text) - 1);
        json_decref(event);
    }
    return n;
}

Test(completions, stream_has_the_shape_that_clients_read) {
    char text[64];
    struct client_server s = client_start(quiet);
    struct client_reply r =
        client_call(s, CHAT,
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9\"}],\"stream\":true,"
                    "\"stream_options\":{\"include_usage\":true}}");
    cr_expect(r.status == 200);
    cr_expect(strstr(r.head, "Cache-Control: no-cache"));
    cr_expect(strstr(r.head, "X-Accel-Buffering: no"));
    cr_expect(read_stream(r.body, "choices.0.delta.content", text, sizeof text) == 6);
    cr_expect(!strcmp(text, "h\xc3\xa9"), "%s", text);
    cr_expect(strstr(r.body, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}"));
    cr_expect(strstr(r.body, "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\""));
    cr_expect(strstr(r.body, "\"choices\":[],\"usage\":{\"prompt_tokens\":3,"
                             "\"completion_tokens\":3,\"total_tokens\":6,\"prompt_tokens_details\":"
                             "{\"cached_tokens\":0}}}\n\ndata: [DONE]\n\n"));
    cr_expect(strstr(r.body, "\"finish_reason\":null}],\"usage\":null}"));
    client_reply_free(&r);
    client_stop(s);
}

Test(completions, stream_mixes_choices) {
    char text[64];
    struct client_server s = client_start(quiet);
    struct client_reply r =
        client_call(s, COMPLETIONS, "{\"prompt\":[\"ab\",\"cd\"],\"stream\":true,\"logprobs\":0}");
    cr_expect(read_stream(r.body, "choices.0.text", text, sizeof text) == 7);
    cr_expect(strchr(text, 'a') < strchr(text, 'b') && strchr(text, 'c') < strchr(text, 'd'));
    cr_expect(strstr(r.body, "{\"index\":1,\"text\":\"c\",\"logprobs\":{\"tokens\":[\"c\"]"));
    client_reply_free(&r);
    client_stop(s);
}

Test(completions, failure_in_a_stream_is_an_event) {
    struct client_server s = client_start(quiet);
    struct client_reply r = client_call(s, COMPLETIONS, "{\"prompt\":\"@fail\",\"stream\":true}");
    cr_expect(r.status == 200);
    cr_expect(strstr(r.body, "data: {\"error\":{\"message\":\"the fake failed\",\"type\":"
                             "\"server_error\",\"param\":null,\"code\":\"engine_error\"}}\n\n"));
    cr_expect(strstr(r.body, "data: [DONE]\n\n"));
    client_reply_free(&r);
    client_stop(s);
}
