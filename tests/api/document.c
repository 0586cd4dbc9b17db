/* Real answers against the schemas of /openapi.json. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/client.h"
#include "tests/support/schema.h"

static const char *const quiet[] = {"--log-level", "error", NULL};

#define MESSAGES "{\"messages\":[{\"role\":\"user\",\"content\":\"ab\"}]"

static const struct {
    const char *path, *body; /* NULL: GET */
    int status;
    const char *schema;
} cases[] = {
    {"/v1/completions", "{\"prompt\":\"ab\"}", 200, "Completion"},
    {"/v1/completions",
     "{\"prompt\":[\"ab\",\"c\"],\"n\":2,\"echo\":true,\"logprobs\":2,\"prompt_logprobs\":1,"
     "\"return_token_ids\":true,\"stop\":\"b\"}",
     200, "Completion"},
    {"/v1/completions", "{\"prompt\":\"ab\",\"stop_token_ids\":[98]}", 200, "Completion"},
    {"/v1/completions", "{}", 400, "Error"},
    {"/v1/completions", "{\"prompt\":\"a\",\"model\":\"b\"}", 404, "Error"},
    {"/v1/chat/completions", MESSAGES "}", 200, "ChatCompletion"},
    {"/v1/chat/completions",
     MESSAGES ",\"logprobs\":true,\"top_logprobs\":2,\"prompt_logprobs\":1,"
              "\"return_token_ids\":true,\"max_tokens\":1}",
     200, "ChatCompletion"},
    {"/v1/responses", "{\"input\":\"ab\"}", 200, "Response"},
    {"/v1/responses", "{\"input\":\"ab\",\"max_output_tokens\":1}", 200, "Response"},
    {"/v1/embeddings", "{\"input\":[\"ab\",\"c\"]}", 200, "EmbeddingList"},
    {"/v1/embeddings", "{\"input\":\"a\",\"encoding_format\":\"base64\"}", 200, "EmbeddingList"},
    {"/tokenize", "{\"prompt\":\"ab\"}", 200, "Tokens"},
    {"/tokenize", "{\"prompt\":\"ab\",\"return_token_strs\":true}", 200, "Tokens"},
    {"/detokenize", "{\"tokens\":[97]}", 200, "Detokenized"},
    {"/v1/explain", "{\"prompt\":\"ab\",\"n\":2}", 200, "Explanation"},
    {"/v1/explain", "{\"prompt\":\"@full\"}", 200, "Explanation"},
    {"/v1/explain", MESSAGES "}", 200, "Explanation"},
    {"/v1/models", NULL, 200, "ModelList"},
    {"/v1/models/builtin", NULL, 200, "Model"},
    {"/v1/models/other", NULL, 404, "Error"},
    {"/nothing", NULL, 404, "Error"},
    {"/health", NULL, 200, "Health"},
    {"/health/startup", NULL, 200, "Health"},
    {"/load", NULL, 200, "Load"},
    {"/is_sleeping", NULL, 200, "Sleeping"},
    {"/version", NULL, 200, "Version"},
    {"/openapi.json", NULL, 200, "Document"},
};

Test(document, answers_are_what_it_says) {
    struct client_server s = client_start(quiet);
    struct client_reply r = client_call(s, "/openapi.json", NULL);
    json_t *root = json_loadb(r.body, r.n, JSON_DECODE_INT_AS_REAL, NULL);
    cr_assert(r.status == 200 && root);
    client_reply_free(&r);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char reference[128], where[512];
        snprintf(reference, sizeof reference, "#/components/schemas/%s", cases[i].schema);
        r = client_call(s, cases[i].path, cases[i].body);
        /* The document's own largest number is no integer for this parser. */
        json_t *answer = json_loadb(
            r.body, r.n, strcmp(cases[i].schema, "Document") ? 0 : JSON_DECODE_INT_AS_REAL, NULL);
        cr_expect(r.status == cases[i].status, "%s: %d", cases[i].path, r.status);
        cr_expect(schema_check(root, schema_resolve(root, reference), answer, where, sizeof where),
                  "%s: %s in %s", cases[i].path, where, r.body);
        json_decref(answer);
        client_reply_free(&r);
    }
    json_decref(root);
    client_stop(s);
}

/* Its own examples of what is wrong. */
Test(document, schemas_are_not_satisfied_by_anything) {
    struct client_server s = client_start(quiet);
    struct client_reply r = client_call(s, "/openapi.json", NULL);
    json_t *root = json_loadb(r.body, r.n, JSON_DECODE_INT_AS_REAL, NULL);
    json_t *answer = json_object();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char reference[128], where[512];
        snprintf(reference, sizeof reference, "#/components/schemas/%s", cases[i].schema);
        cr_expect(!schema_check(root, schema_resolve(root, reference), answer, where, sizeof where),
                  "%s", cases[i].schema);
    }
    json_decref(answer);
    json_decref(root);
    client_reply_free(&r);
    client_stop(s);
}
