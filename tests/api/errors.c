#include <criterion/criterion.h>
#include <string.h>

#include "tests/support/client.h"

static const char *const quiet[] = {"--log-level", "error", "--max-prompt-tokens", "100", NULL};

struct wrong {
    const char *body;
    int status;
    const char *param, *code; /* NULL = null */
};

static void expect_errors(struct client_server s, const char *path, const struct wrong *list,
                          size_t n) {
    for (size_t i = 0; i < n; i++) {
        json_t *root = client_json(s, path, list[i].body, list[i].status);
        const char *param = json_string_value(client_at(root, "error.param"));
        const char *code = json_string_value(client_at(root, "error.code"));
        const char *expected = list[i].param ? list[i].param : "null";
        cr_expect(!strcmp(param ? param : "null", expected), "%s: param is %s, not %s",
                  list[i].body, param ? param : "null", expected);
        cr_expect(!strcmp(code ? code : "null", list[i].code ? list[i].code : "null"), "%s: %s",
                  list[i].body, code ? code : "null");
        cr_expect(*client_string(root, "error.message") && *client_string(root, "error.type"));
        json_decref(root);
    }
}

Test(errors, every_wrong_field_of_a_completion_is_named) {
    static const struct wrong list[] = {
        {"", 400, NULL, NULL},
        {"{", 400, NULL, NULL},
        {"[]", 400, NULL, NULL},
        {"3", 400, NULL, NULL},
        {"{\"prompt\":\"\\ud800\"}", 400, NULL, NULL},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}", 400, NULL, NULL},
        {"{}", 400, "prompt", NULL},
        {"{\"prompt\":null}", 400, "prompt", NULL},
        {"{\"prompt\":5}", 400, "prompt", NULL},
        {"{\"prompt\":\"\"}", 400, "prompt", NULL},
        {"{\"prompt\":[]}", 400, "prompt", NULL},
        {"{\"prompt\":[\"a\",5]}", 400, "prompt[1]", NULL},
        {"{\"prompt\":[\"a\",\"\"]}", 400, "prompt[1]", NULL},
        {"{\"prompt\":[[1],[]]}", 400, "prompt[1]", NULL},
        {"{\"prompt\":[256]}", 400, "prompt", NULL},
        {"{\"prompt\":[-1]}", 400, "prompt", NULL},
        {"{\"prompt\":[1,\"a\"]}", 400, "prompt", NULL},
        {"{\"prompt\":[1,1.5]}", 400, "prompt", NULL},
        {"{\"prompt\":\"a\",\"max_tokens\":0,\"min_tokens\":1}", 400, "min_tokens", NULL},
        {"{\"prompt\":\"a\",\"max_tokens\":-1}", 400, "max_tokens", NULL},
        {"{\"prompt\":\"a\",\"max_tokens\":1.5}", 400, "max_tokens", NULL},
        {"{\"prompt\":\"a\",\"max_tokens\":\"1\"}", 400, "max_tokens", NULL},
        {"{\"prompt\":\"a\",\"max_tokens\":9223372036854775807}", 400, "max_tokens", NULL},
        {"{\"prompt\":\"a\",\"max_tokens\":9223372036854775808}", 400, "max_tokens", NULL},
        {"{\"prompt\":\"a\",\"min_tokens\":-1}", 400, "min_tokens", NULL},
        {"{\"prompt\":\"a\",\"min_tokens\":17}", 400, "min_tokens", NULL},
        {"{\"prompt\":\"a\",\"n\":0}", 400, "n", NULL},
        {"{\"prompt\":\"a\",\"n\":129}", 400, "n", NULL},
        {"{\"prompt\":[\"a\",\"b\"],\"n\":65}", 400, "n", NULL},
        {"{\"prompt\":\"a\",\"best_of\":2,\"n\":3}", 400, "best_of", NULL},
        {"{\"prompt\":\"a\",\"best_of\":2,\"stream\":true}", 400, "best_of", NULL},
        {"{\"prompt\":[\"a\",\"b\"],\"best_of\":65}", 400, "best_of", NULL},
        {"{\"prompt\":\"a\",\"prompt_logprobs\":1,\"stream\":true}", 400, "prompt_logprobs", NULL},
        {"{\"prompt\":\"a\",\"prompt_logprobs\":-1}", 400, "prompt_logprobs", NULL},
        {"{\"prompt\":\"a\",\"truncate_prompt_tokens\":0}", 400, "truncate_prompt_tokens", NULL},
        {"{\"prompt\":\"a\",\"truncate_prompt_tokens\":-2}", 400, "truncate_prompt_tokens", NULL},
        {"{\"prompt\":\"a\",\"stop_token_ids\":5}", 400, "stop_token_ids", NULL},
        {"{\"prompt\":\"a\",\"stop_token_ids\":[256]}", 400, "stop_token_ids", NULL},
        {"{\"prompt\":\"a\",\"request_id\":\"a b\"}", 400, "request_id", NULL},
        {"{\"prompt\":\"a\",\"request_id\":\"\"}", 400, "request_id", NULL},
        {"{\"prompt\":\"a\",\"cache_salt\":\"\"}", 400, "cache_salt", NULL},
        {"{\"prompt\":\"a\",\"priority\":\"high\"}", 400, "priority", NULL},
        {"{\"prompt\":\"a\",\"stream_options\":{\"continuous_usage_stats\":1}}", 400,
         "stream_options.continuous_usage_stats", NULL},
        {"{\"prompt\":\"a\",\"best_of\":\"x\"}", 400, "best_of", NULL},
        {"{\"prompt\":\"a\",\"temperature\":2.5}", 400, "temperature", NULL},
        {"{\"prompt\":\"a\",\"temperature\":-1}", 400, "temperature", NULL},
        {"{\"prompt\":\"a\",\"temperature\":\"hot\"}", 400, "temperature", NULL},
        {"{\"prompt\":\"a\",\"top_p\":0}", 400, "top_p", NULL},
        {"{\"prompt\":\"a\",\"top_p\":1.1}", 400, "top_p", NULL},
        {"{\"prompt\":\"a\",\"top_k\":-2}", 400, "top_k", NULL},
        {"{\"prompt\":\"a\",\"top_k\":0.5}", 400, "top_k", NULL},
        {"{\"prompt\":\"a\",\"min_p\":1}", 400, "min_p", NULL},
        {"{\"prompt\":\"a\",\"frequency_penalty\":3}", 400, "frequency_penalty", NULL},
        {"{\"prompt\":\"a\",\"presence_penalty\":-3}", 400, "presence_penalty", NULL},
        {"{\"prompt\":\"a\",\"repetition_penalty\":0}", 400, "repetition_penalty", NULL},
        {"{\"prompt\":\"a\",\"seed\":1.5}", 400, "seed", NULL},
        {"{\"prompt\":\"a\",\"seed\":18446744073709551616}", 400, "seed", NULL},
        {"{\"prompt\":\"a\",\"seed\":-9223372036854775809}", 400, "seed", NULL},
        {"{\"prompt\":\"a\",\"stop\":5}", 400, "stop", NULL},
        {"{\"prompt\":\"a\",\"stop\":[\"a\",5]}", 400, "stop", NULL},
        {"{\"prompt\":\"a\",\"stop\":\"\"}", 400, "stop", NULL},
        {"{\"prompt\":\"a\",\"stop\":\"a\\u0000b\"}", 400, "stop", NULL},
        {"{\"prompt\":\"a\",\"stop\":[\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\","
         "\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\"]}",
         400, "stop", NULL},
        {"{\"prompt\":\"a\",\"stream\":1}", 400, "stream", NULL},
        {"{\"prompt\":\"a\",\"stream_options\":1}", 400, "stream_options", NULL},
        {"{\"prompt\":\"a\",\"stream_options\":{\"include_usage\":1}}", 400,
         "stream_options.include_usage", NULL},
        {"{\"prompt\":\"a\",\"echo\":\"yes\"}", 400, "echo", NULL},
        {"{\"prompt\":\"a\",\"ignore_eos\":0}", 400, "ignore_eos", NULL},
        {"{\"prompt\":\"a\",\"logprobs\":21}", 400, "logprobs", NULL},
        {"{\"prompt\":\"a\",\"logprobs\":true}", 400, "logprobs", NULL},
        {"{\"prompt\":\"a\",\"suffix\":\"b\"}", 400, "suffix", NULL},
        {"{\"prompt\":\"a\",\"logit_bias\":[1]}", 400, "logit_bias", NULL},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"x\":1}}", 400, "logit_bias", NULL},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"256\":1}}", 400, "logit_bias", NULL},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"1\":101}}", 400, "logit_bias", NULL},
        {"{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\"}}", 400,
         "response_format", NULL},
        {"{\"prompt\":\"a\",\"model\":5}", 400, "model", NULL},
        {"{\"prompt\":\"a\",\"model\":\"gpt-4\"}", 404, "model", "model_not_found"},
        {"{\"prompt\":\"@long\"}", 400, NULL, "context_length_exceeded"},
        {"{\"prompt\":\"@late\"}", 400, NULL, "context_length_exceeded"},
        {"{\"prompt\":\"@late\",\"stream\":true}", 400, NULL, "context_length_exceeded"},
        {"{\"prompt\":\"@bad\"}", 400, "prompt", NULL},
        {"{\"prompt\":\"@full\"}", 429, NULL, "server_overloaded"},
        {"{\"prompt\":\"@fail\"}", 500, NULL, "engine_error"},
    };
    struct client_server s = client_start(quiet);
    expect_errors(s, "/v1/completions", list, sizeof list / sizeof *list);
    client_stop(s);
}

#define MESSAGES "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"

Test(errors, every_wrong_field_of_a_chat_is_named) {
    static const struct wrong list[] = {
        {"{}", 400, "messages", NULL},
        {"{\"messages\":[]}", 400, "messages", NULL},
        {"{\"messages\":\"a\"}", 400, "messages", NULL},
        {"{\"messages\":[5]}", 400, "messages[0]", NULL},
        {"{\"messages\":[{\"content\":\"a\"}]}", 400, "messages[0].role", NULL},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"a\"}]}", 400, "messages[0].role", NULL},
        {"{\"messages\":[{\"role\":\"user\"}]}", 400, "messages[0].content", NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":5}]}", 400, "messages[0].content", NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", 400, "messages[0].content", NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000\"}]}", 400,
         "messages[0].content", NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", 400,
         "messages[0].content[0].type", NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", 400,
         "messages[0].content[0].text", NULL},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]}", 400,
         "messages[0].tool_calls", NULL},
        {MESSAGES "\"max_completion_tokens\":0}", 400, "max_completion_tokens", NULL},
        {MESSAGES "\"tools\":[{\"type\":\"function\"}]}", 400, "tools", NULL},
        {MESSAGES "\"tool_choice\":\"required\"}", 400, "tool_choice", NULL},
        {MESSAGES "\"functions\":[{}]}", 400, "functions", NULL},
        {MESSAGES "\"function_call\":{\"name\":\"f\"}}", 400, "function_call", NULL},
        {MESSAGES "\"modalities\":[\"text\",\"audio\"]}", 400, "modalities", NULL},
        {MESSAGES "\"audio\":{\"voice\":\"x\"}}", 400, "audio", NULL},
        {MESSAGES "\"response_format\":{\"type\":\"json_schema\"}}", 400, "response_format", NULL},
        {MESSAGES "\"logprobs\":1}", 400, "logprobs", NULL},
        {MESSAGES "\"top_logprobs\":2}", 400, "top_logprobs", NULL},
        {MESSAGES "\"logprobs\":true,\"top_logprobs\":21}", 400, "top_logprobs", NULL},
    };
    struct client_server s = client_start(quiet);
    expect_errors(s, "/v1/chat/completions", list, sizeof list / sizeof *list);
    client_stop(s);
}

Test(errors, harmless_fields_are_ignored) {
    struct client_server s = client_start(quiet);
    json_decref(client_json(
        s, "/v1/chat/completions",
        MESSAGES "\"user\":\"u\",\"metadata\":{},\"store\":false,\"service_tier\":\"auto\","
                 "\"tools\":[],\"tool_choice\":\"auto\",\"response_format\":{\"type\":\"text\"},"
                 "\"modalities\":[\"text\"],\"unheard_of\":[1,2],\"stop\":null,\"n\":null,"
                 "\"parallel_tool_calls\":true,\"model\":\"\"}",
        200));
    client_stop(s);
}

Test(errors, other_endpoints_name_their_fields_too) {
    static const struct wrong responses[] = {
        {"{}", 400, "input", NULL},
        {"{\"input\":5}", 400, "input", NULL},
        {"{\"input\":\"\"}", 400, "input", NULL},
        {"{\"input\":[]}", 400, "input", NULL},
        {"{\"input\":[{\"type\":\"function_call_output\"}]}", 400, "input[0].type", NULL},
        {"{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_image\"}]}]}", 400,
         "input[0].content[0].type", NULL},
        {"{\"input\":\"a\",\"instructions\":5}", 400, "instructions", NULL},
        {"{\"input\":\"a\",\"max_output_tokens\":0}", 400, "max_output_tokens", NULL},
        {"{\"input\":\"a\",\"truncation\":\"some\"}", 400, "truncation", NULL},
        {"{\"input\":\"@late\"}", 400, NULL, "context_length_exceeded"},
    };
    static const struct wrong embeddings[] = {
        {"{}", 400, "input", NULL},
        {"{\"input\":\"\"}", 400, "input", NULL},
        {"{\"input\":[\"a\",5]}", 400, "input[1]", NULL},
        {"{\"input\":\"a\",\"dimensions\":3}", 400, "dimensions", NULL},
        {"{\"input\":\"a\",\"encoding_format\":\"hex\"}", 400, "encoding_format", NULL},
        {"{\"input\":\"a\",\"pooling\":\"max\"}", 400, "pooling", NULL},
        {"{\"input\":[\"a\",\"@bad\"]}", 400, "input", NULL},
    };
    static const struct wrong tokenize[] = {
        {"{}", 400, "prompt", NULL},
        {"{\"prompt\":[1]}", 400, "prompt", NULL},
        {MESSAGES "\"prompt\":\"a\"}", 400, "messages", NULL},
    };
    static const struct wrong detokenize[] = {
        {"{}", 400, "tokens", NULL},
        {"{\"tokens\":\"a\"}", 400, "tokens", NULL},
        {"{\"tokens\":[256]}", 400, "tokens", NULL},
    };
    struct client_server s = client_start(quiet);
    expect_errors(s, "/v1/responses", responses, sizeof responses / sizeof *responses);
    expect_errors(s, "/v1/embeddings", embeddings, sizeof embeddings / sizeof *embeddings);
    expect_errors(s, "/tokenize", tokenize, sizeof tokenize / sizeof *tokenize);
    expect_errors(s, "/v1/detokenize", detokenize, sizeof detokenize / sizeof *detokenize);
    client_stop(s);
}

Test(errors, prompts_over_the_limit_are_refused_in_every_form) {
    char text[512] = "{\"stream\":true,\"prompt\":\"", ids[1024] = "{\"prompt\":[1";
    struct client_server s = client_start(quiet);
    for (int i = 0; i < 100; i++) strcat(ids, ",1");
    strcat(ids, "]}");
    for (int i = 0; i < 101; i++) strcat(text, "a");
    strcat(text, "\"}");
    json_t *root = client_json(s, "/v1/completions", ids, 400);
    cr_expect(!strcmp(client_string(root, "error.code"), "context_length_exceeded"));
    json_decref(root);
    root = client_json(s, "/v1/completions", text, 400);
    cr_expect(!strcmp(client_string(root, "error.code"), "context_length_exceeded"));
    json_decref(root);
    client_stop(s);
}

Test(errors, overload_says_when_to_come_back) {
    struct client_server s = client_start(quiet);
    struct client_reply r = client_call(s, "/v1/completions", "{\"prompt\":\"@full\"}");
    cr_expect(r.status == 429 && strstr(r.head, "Retry-After: 1\r\n"));
    client_reply_free(&r);
    client_stop(s);
}
