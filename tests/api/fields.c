/* The table of fields against the running server: what it says of each is what happens. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/openai_fields.h"
#include "server/text.h"
#include "tests/support/client.h"

static const char *const quiet[] = {"--log-level", "error", NULL};
static const char *const strict[] = {"--log-level", "error", "--unknown-fields", "strict", NULL};

static const struct {
    const char *path, *field, *value; /* the shortest request */
} kinds[OPENAI_KINDS] = {
    [OPENAI_COMPLETION] = {"/v1/completions", "prompt", "'a'"},
    [OPENAI_CHAT] = {"/v1/chat/completions", "messages", "[{'role':'user','content':'a'}]"},
    [OPENAI_RESPONSE] = {"/v1/responses", "input", "'a'"},
    [OPENAI_EMBEDDING] = {"/v1/embeddings", "input", "'a'"},
    [OPENAI_TOKENIZE] = {"/tokenize", "prompt", "'a'"},
    [OPENAI_DETOKENIZE] = {"/detokenize", "tokens", "[97]"},
};

static bool is_source(enum openai_kind kind, const char *name) {
    return !strcmp(name, kinds[kind].field) ||
           (kind == OPENAI_TOKENIZE && !strcmp(name, "messages"));
}

static struct client_reply ask(struct client_server s, enum openai_kind kind, const char *name,
                               const char *value) {
    struct text body = {0};
    text_adds(&body, "{");
    if (!is_source(kind, name)) {
        text_addf(&body, "\"%s\":", kinds[kind].field);
        openai_field_json(&body, kinds[kind].value);
        text_adds(&body, ",");
    }
    text_addf(&body, "\"%s\":", name);
    openai_field_json(&body, value);
    text_adds(&body, "}");
    struct client_reply r = client_call(s, kinds[kind].path, body.data);
    text_deinit(&body);
    return r;
}

static bool is_listed(const struct client_reply *r, const char *name) {
    char line[256];
    snprintf(line, sizeof line, "X-Ignored-Params: %s\r\n", name);
    return strstr(r->head, line) != NULL;
}

static void expect_refused(struct client_server s, enum openai_kind kind,
                           const struct openai_field *f, const char *value) {
    char param[128];
    struct client_reply r = ask(s, kind, f->name, value);
    snprintf(param, sizeof param, "\"param\":\"%s\"", f->name);
    cr_expect(r.status == 400 && strstr(r.body, param), "%s %s: %d %s", kinds[kind].path, f->name,
              r.status, r.body);
    client_reply_free(&r);
}

static void expect_taken(struct client_server s, enum openai_kind kind,
                         const struct openai_field *f, const char *value) {
    struct client_reply r = ask(s, kind, f->name, value);
    bool listed = is_listed(&r, f->name);
    cr_expect(r.status == 200, "%s %s=%s: %d %s", kinds[kind].path, f->name, value, r.status,
              r.body);
    cr_expect(listed == (f->status == OPENAI_IGNORED && strcmp(value, "null") != 0), "%s %s: %s",
              kinds[kind].path, f->name, r.head);
    client_reply_free(&r);
}

static void expect_neutral(struct client_server s, enum openai_kind kind,
                           const struct openai_field *f) {
    struct text list = {0};
    openai_field_json(&list, f->schema);
    json_t *values = json_loads(list.data, 0, NULL);
    for (size_t i = 0; i < json_array_size(values); i++) {
        char *value = json_dumps(json_array_get(values, i), JSON_ENCODE_ANY | JSON_COMPACT);
        expect_taken(s, kind, f, value);
        free(value);
    }
    json_decref(values);
    text_deinit(&list);
}

static void try_row(struct client_server s, enum openai_kind kind, const struct openai_field *f) {
    char hidden[16] = "4"; /* of the fake's vectors */
    const char *example = f->example ? f->example : hidden;
    if (!is_source(kind, f->name)) expect_taken(s, kind, f, "null");
    if (f->status != OPENAI_REFUSED) {
        expect_taken(s, kind, f, example);
        return;
    }
    expect_refused(s, kind, f, example);
    expect_neutral(s, kind, f);
}

static void try_table(struct client_server s) {
    size_t n;
    const struct openai_field *f = openai_fields(&n);
    cr_assert(n > 100);
    for (size_t i = 0; i < n; i++)
        for (int kind = 0; kind < OPENAI_KINDS; kind++)
            if (f[i].where & 1u << kind) try_row(s, (enum openai_kind)kind, &f[i]);
}

/* null is no value, so nothing is ignored then. */
static void expect_unknown(struct client_server s, int status) {
    for (int kind = 0; kind < OPENAI_KINDS; kind++) {
        struct client_reply r = ask(s, (enum openai_kind)kind, "unheard_of", "{'a':[1]}");
        cr_expect(r.status == status, "%s: %d", kinds[kind].path, r.status);
        if (status == 200)
            cr_expect(is_listed(&r, "unheard_of"), "%s", r.head);
        else
            cr_expect(strstr(r.body, "\"param\":\"unheard_of\""), "%s", r.body);
        client_reply_free(&r);
    }
}

Test(fields, are_treated_as_the_table_says) {
    struct client_server s = client_start(quiet);
    try_table(s);
    expect_unknown(s, 200);
    client_stop(s);
}

Test(fields, are_treated_so_in_strict_mode_and_unknown_ones_refused) {
    struct client_server s = client_start(strict);
    try_table(s);
    expect_unknown(s, 400);
    client_stop(s);
}

Test(fields, many_and_odd_names_do_not_break_the_header) {
    struct client_server s = client_start(quiet);
    struct text body = {0};
    text_adds(&body, "{\"prompt\":\"a\",\"x\\r\\ny: z\":1,\"\":2");
    for (int i = 0; i < 200; i++) text_addf(&body, ",\"some_unknown_field_%d\":%d", i, i);
    text_adds(&body, "}");
    struct client_reply r = client_call(s, "/v1/completions", body.data);
    cr_expect(r.status == 200);
    cr_expect(strstr(r.head, "X-Ignored-Params: x??y??z, ?, some_unknown_field_0, "), "%s", r.head);
    cr_expect(strstr(r.head, ", ...\r\n"), "%s", r.head);
    client_reply_free(&r);
    text_deinit(&body);
    client_stop(s);
}

/* Members of messages are treated like fields. */
Test(fields, of_messages_are_not_dropped_silently) {
    static const char body[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":\"n\"},"
        "{\"role\":\"assistant\",\"content\":\"b\",\"refusal\":null,"
        "\"name\":\"m\"},{\"role\":\"user\",\"content\":\"c\"%s}]}";
    char text[512];
    struct client_server s = client_start(quiet);
    snprintf(text, sizeof text, body, ",\"cache_control\":{}");
    struct client_reply r = client_call(s, "/v1/chat/completions", text);
    cr_expect(r.status == 200 && is_listed(&r, "messages[].name, messages[].cache_control"), "%s",
              r.head);
    client_reply_free(&r);
    client_stop(s);
    s = client_start(strict);
    r = client_call(s, "/v1/chat/completions", text);
    cr_expect(r.status == 400 && strstr(r.body, "\"param\":\"messages[2].cache_control\""), "%s",
              r.body);
    client_reply_free(&r);
    snprintf(text, sizeof text, body, "");
    r = client_call(s, "/v1/chat/completions", text);
    cr_expect(r.status == 200 && is_listed(&r, "messages[].name"), "%s", r.head);
    client_reply_free(&r);
    client_stop(s);
}

static void send_prompts(struct client_server s, enum openai_kind kind, size_t n, int status) {
    struct text list = {0};
    text_adds(&list, "[");
    for (size_t i = 0; i < n; i++) text_addf(&list, "%s[97]", i ? "," : "");
    text_adds(&list, "]");
    struct client_reply r = ask(s, kind, kinds[kind].field, list.data);
    cr_expect(r.status == status, "%s, %zu prompts: %d %.200s", kinds[kind].path, n, r.status,
              r.body);
    client_reply_free(&r);
    text_deinit(&list);
}

/* The document's limit is the server's, to the last prompt. */
Test(fields, hold_as_many_prompts_as_their_schema_says) {
    struct client_server s = client_start(quiet);
    static const struct {
        enum openai_kind kind;
        size_t most;
    } limits[] = {{OPENAI_COMPLETION, OPENAI_MAX_CHOICES}, {OPENAI_EMBEDDING, OPENAI_MAX_INPUTS}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const struct openai_field *f =
            openai_field_find(kinds[limits[i].kind].field, limits[i].kind);
        char item[32];
        snprintf(item, sizeof item, "'maxItems':%zu,", limits[i].most);
        cr_expect(strstr(f->schema, item), "%s: %s", f->name, f->schema);
        send_prompts(s, limits[i].kind, limits[i].most, 200);
        send_prompts(s, limits[i].kind, limits[i].most + 1, 400);
    }
    client_stop(s);
}
