#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/client.h"

static const char *const quiet[] = {"--log-level", "error", NULL};

static double number(const json_t *root, const char *path) {
    const json_t *value = client_at(root, path);
    cr_expect(json_is_number(value), "%s is no number", path);
    return json_number_value(value);
}

Test(endpoints, embeddings_have_a_vector_for_each_input) {
    struct client_server s = client_start(quiet);
    json_t *root = client_json(
        s, "/v1/embeddings",
        "{\"input\":[\"ab\",[97,98,99]],\"normalize\":false,\"pooling\":\"mean\"}", 200);
    cr_expect_str_eq(client_string(root, "object"), "list");
    cr_expect_str_eq(client_string(root, "model"), "builtin");
    cr_expect_str_eq(client_string(root, "data.1.object"), "embedding");
    cr_expect(number(root, "data.0.index") == 0 && number(root, "data.1.index") == 1);
    cr_expect(json_array_size(client_at(root, "data.1.embedding")) == 4);
    cr_expect(number(root, "data.0.embedding.0") == 2 && number(root, "data.1.embedding.0") == 3);
    cr_expect(number(root, "data.1.embedding.2") == 99 && number(root, "data.1.embedding.3") == 1);
    cr_expect(number(root, "usage.prompt_tokens") == 5 && number(root, "usage.total_tokens") == 5);
    json_decref(root);
    root = client_json(s, "/v1/embeddings", "{\"input\":\"\\u0003\",\"dimensions\":4}", 200);
    double first = number(root, "data.0.embedding.0"); /* of 1, 3, 3, 0 */
    cr_expect(first > 0.2294 && first < 0.2295, "%g", first);
    json_decref(root);
    /* 2, 97, 98, 0 as little-endian floats */
    root =
        client_json(s, "/v1/embeddings",
                    "{\"input\":\"ab\",\"normalize\":false,\"encoding_format\":\"base64\"}", 200);
    cr_expect_str_eq(client_string(root, "data.0.embedding"), "AAAAQAAAwkIAAMRCAAAAAA==");
    json_decref(root);
    client_stop(s);
}

/* More inputs than the engine has places come in turns. */
Test(endpoints, embeddings_take_long_lists) {
    static const char *const flags[] = {
        "--log-level", "error", "--max-running", "3", "--max-waiting", "2", NULL};
    static char body[32768] = "{\"normalize\":false,\"input\":[\"a\"";
    struct client_server s = client_start(flags);
    char *end = body + strlen(body);
    for (int i = 1; i < 2048; i++) end += sprintf(end, i % 2 ? ",\"ab\"" : ",\"abc\"");
    strcpy(end, "]}");
    json_t *root = client_json(s, "/v1/embeddings", body, 200);
    cr_assert(json_array_size(client_at(root, "data")) == 2048);
    for (int i = 1; i < 2048; i++) {
        char path[64];
        snprintf(path, sizeof path, "data.%d.embedding.0", i);
        cr_assert(number(root, path) == (i % 2 ? 2 : 3), "%s", path);
    }
    json_decref(root);
    strcpy(end, ",\"a\"]}");
    json_decref(client_json(s, "/v1/embeddings", body, 400));
    client_stop(s);
}

Test(endpoints, tokens_go_there_and_back) {
    struct client_server s = client_start(quiet);
    json_t *root = client_json(s, "/tokenize", "{\"prompt\":\"a\\u00e9\"}", 200);
    cr_expect(number(root, "count") == 4 && number(root, "max_model_len") > 0);
    cr_expect(number(root, "tokens.0") == 1 && number(root, "tokens.1") == 97);
    cr_expect(json_is_null(client_at(root, "token_strs")));
    json_decref(root);
    root = client_json(
        s, "/v1/tokenize",
        "{\"prompt\":\"ab\",\"add_special_tokens\":false,\"return_token_strs\":true}", 200);
    cr_expect(number(root, "count") == 2);
    cr_expect_str_eq(client_string(root, "token_strs.1"), "b");
    json_decref(root);
    root = client_json(s, "/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"xyz\"}]}",
                       200);
    cr_expect(number(root, "count") == 4);
    json_decref(root);
    root = client_json(s, "/detokenize", "{\"tokens\":[97,195,169,34]}", 200);
    cr_expect_str_eq(client_string(root, "prompt"), "a\xc3\xa9\"");
    json_decref(root);
    root = client_json(s, "/v1/detokenize", "{\"tokens\":[]}", 200);
    cr_expect_str_eq(client_string(root, "prompt"), "");
    json_decref(root);
    client_stop(s);
}

Test(endpoints, responses_are_one_object) {
    struct client_server s = client_start(quiet);
    json_t *root =
        client_json(s, "/v1/responses",
                    "{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_text\","
                    "\"text\":\"hello\"}]}],\"instructions\":\"be\","
                    "\"temperature\":0.5,\"request_id\":\"r1\",\"store\":true}",
                    200);
    cr_expect_str_eq(client_string(root, "id"), "resp_r1");
    cr_expect_str_eq(client_string(root, "object"), "response");
    cr_expect_str_eq(client_string(root, "status"), "completed");
    cr_expect_str_eq(client_string(root, "instructions"), "be");
    cr_expect_str_eq(client_string(root, "output.0.type"), "message");
    cr_expect_str_eq(client_string(root, "output.0.content.0.text"), "hello");
    cr_expect(json_is_false(client_at(root, "store")));
    cr_expect(json_is_null(client_at(root, "incomplete_details")));
    cr_expect(number(root, "temperature") == 0.5);
    cr_expect(number(root, "usage.input_tokens") == 7 && number(root, "usage.output_tokens") == 5);
    json_decref(root);
    root = client_json(s, "/v1/responses", "{\"input\":\"hello\",\"max_output_tokens\":2}", 200);
    cr_expect_str_eq(client_string(root, "status"), "incomplete");
    cr_expect_str_eq(client_string(root, "incomplete_details.reason"), "max_output_tokens");
    cr_expect_str_eq(client_string(root, "output.0.content.0.text"), "he");
    json_decref(root);
    client_stop(s);
}

/* The types in order, with numbers from 0; the last event has the whole object. */
static void expect_events(const char *body, const char *const *types, const char *text) {
    int n = 0;
    json_t *event = NULL;
    for (const char *p = body; (p = strstr(p, "event: ")); n++) {
        const char *data = strstr(p, "\ndata: "), *end = strstr(p, "\n\n");
        cr_assert(data && end && data < end && types[n], "%d: %s", n, p);
        json_decref(event);
        event = json_loadb(data + 7, (size_t)(end - data) - 7, 0, NULL);
        cr_assert(event, "%s", data);
        cr_expect_str_eq(client_string(event, "type"), types[n]);
        cr_expect(!strncmp(p + 7, types[n], strlen(types[n])));
        cr_expect(number(event, "sequence_number") == n);
        p = end;
    }
    cr_expect(types[n] == NULL, "%s is missing", types[n]);
    if (text) cr_expect_str_eq(client_string(event, "response.output.0.content.0.text"), text);
    json_decref(event);
}

Test(endpoints, responses_stream_typed_events) {
    static const char *const good[] = {"response.created",
                                       "response.in_progress",
                                       "response.output_item.added",
                                       "response.content_part.added",
                                       "response.output_text.delta",
                                       "response.output_text.delta",
                                       "response.output_text.done",
                                       "response.content_part.done",
                                       "response.output_item.done",
                                       "response.completed",
                                       NULL};
    static const char *const bad[] = {"response.created",
                                      "response.in_progress",
                                      "response.output_item.added",
                                      "response.content_part.added",
                                      "response.output_text.delta",
                                      "response.failed",
                                      NULL};
    struct client_server s = client_start(quiet);
    struct client_reply r =
        client_call(s, "/v1/responses", "{\"input\":\"h\\u00e9\",\"stream\":true}");
    cr_expect(r.status == 200 && strstr(r.head, "text/event-stream"));
    expect_events(r.body, good, "h\xc3\xa9");
    cr_expect(!strstr(r.body, "[DONE]"));
    client_reply_free(&r);
    r = client_call(s, "/v1/responses", "{\"input\":\"@fail\",\"stream\":true}");
    expect_events(r.body, bad, NULL);
    cr_expect(strstr(r.body, "\"message\":\"the fake failed\""));
    client_reply_free(&r);
    r = client_call(s, "/v1/responses",
                    "{\"input\":\"abc\",\"stream\":true,\"max_output_tokens\":1}");
    cr_expect(strstr(r.body, "event: response.incomplete\n"));
    client_reply_free(&r);
    client_stop(s);
}

Test(endpoints, small_ones_answer) {
    static const struct {
        const char *path, *body;
    } cases[] = {
        {"/load", "{\"server_load\":0}"},
        {"/is_sleeping", "{\"is_sleeping\":false}"},
    };
    struct client_server s = client_start(quiet);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct client_reply r = client_call(s, cases[i].path, NULL);
        cr_expect(r.status == 200 && !strcmp(r.body, cases[i].body), "%s", r.body);
        client_reply_free(&r);
    }
    client_stop(s);
}
