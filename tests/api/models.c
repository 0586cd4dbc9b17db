#include <criterion/criterion.h>
#include <string.h>

#include "tests/support/client.h"

#define COMPLETIONS "/v1/completions"

static void expect_id(struct client_server s, const char *path, const char *id) {
    json_t *root = client_json(s, path, NULL, 200);
    cr_expect_str_eq(client_string(root, "id"), id);
    cr_expect_str_eq(client_string(root, "object"), "model");
    cr_expect_str_eq(client_string(root, "root"), "org/first");
    cr_expect_str_eq(client_string(root, "meta.quantization"), "none");
    cr_expect(json_is_integer(client_at(root, "meta.bits")));
    cr_expect(json_is_integer(client_at(root, "meta.context_length")));
    json_decref(root);
}

Test(models, have_several_names) {
    static const char *const flags[] = {"--log-level", "error", "--served-model-name",
                                        "org/first, second", NULL};
    struct client_server s = client_start(flags);
    json_t *root = client_json(s, "/v1/models", NULL, 200);
    cr_expect(json_array_size(client_at(root, "data")) == 2);
    cr_expect_str_eq(client_string(root, "data.1.id"), "second");
    json_decref(root);
    expect_id(s, "/v1/models/org/first", "org/first");
    expect_id(s, "/v1/models/org%2Ffirst", "org/first");
    expect_id(s, "/v1/models/second", "second");
    root = client_json(s, "/v1/models/third", NULL, 404);
    cr_expect_str_eq(client_string(root, "error.code"), "model_not_found");
    json_decref(root);
    root = client_json(s, COMPLETIONS, "{\"prompt\":\"a\",\"model\":\"second\"}", 200);
    cr_expect_str_eq(client_string(root, "model"), "org/first");
    json_decref(root);
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"a\",\"model\":\"third\"}", 404));
    client_stop(s);
}

Test(models, may_have_any_name) {
    static const char *const flags[] = {"--log-level", "error", "--any-model", "yes", NULL};
    struct client_server s = client_start(flags);
    json_decref(client_json(s, COMPLETIONS, "{\"prompt\":\"a\",\"model\":\"gpt-9\"}", 200));
    json_decref(client_json(s, "/v1/models/gpt-9", NULL, 404));
    client_stop(s);
}

Test(models, options_tells_the_methods) {
    static const char *const flags[] = {"--log-level", "error", NULL};
    struct client_server s = client_start(flags);
    struct client c = client_open(s);
    client_send(&c, "OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n");
    struct client_reply r = client_reply(&c);
    cr_expect(r.status == 204 && strstr(r.head, "Allow: POST"), "%s", r.head);
    client_reply_free(&r);
    client_send(&c, "OPTIONS /nothing HTTP/1.1\r\nHost: x\r\n\r\n");
    r = client_reply(&c);
    cr_expect(r.status == 404, "%d", r.status);
    client_reply_free(&r);
    client_close(&c);
    client_stop(s);
}
