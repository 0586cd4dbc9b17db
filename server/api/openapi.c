#include "server/api/openapi.h"

#include <ctype.h>
#include <string.h>

#include "server/api/api_error.h"
#include "server/api/openai_fields.h"
#include "server/api/openai_readers.h"
#include "server/router.h"
#include "server/text.h"

static const struct { /* names of requests in the router's rows */
    const char *name;
    const char *required; /* one of them is needed */
} requests[OPENAI_KINDS] = {
    [OPENAI_COMPLETION] = {"CompletionRequest", "'required':['prompt']"},
    [OPENAI_CHAT] = {"ChatRequest", "'required':['messages']"},
    [OPENAI_RESPONSE] = {"ResponseRequest", "'required':['input']"},
    [OPENAI_EMBEDDING] = {"EmbeddingRequest", "'required':['input']"},
    [OPENAI_TOKENIZE] = {"TokenizeRequest",
                         "'oneOf':[{'required':['prompt'],'properties':{'prompt':{'type':"
                         "'string'}}},{'required':['messages'],'properties':{'messages':{'type':"
                         "'array'}}}]"},
    [OPENAI_DETOKENIZE] = {"DetokenizeRequest", "'required':['tokens']"},
};

/* -- Requests ------------------------------------------------------------------------------ */

/* @ stands for the largest token id. */
static void add_schema(struct text *out, const char *schema, const struct openapi_facts *facts) {
    for (const char *at; (at = strchr(schema, '@')); schema = at + 1) {
        char part[256];
        size_t n = (size_t)(at - schema);
        if (n >= sizeof part) n = sizeof part - 1;
        memcpy(part, schema, n);
        part[n] = 0;
        openai_field_json(out, part);
        text_addf(out, "%d", facts->vocab > 0 ? facts->vocab - 1 : 0x7fffffff);
    }
    openai_field_json(out, schema);
}

static void add_range(struct text *out, const struct openai_field *f) {
    bool whole = f->read != openai_read_real;
    text_addf(out, "\"type\":[\"%s\",\"null\"],\"minimum\":%.9g,\"maximum\":%.9g",
              whole ? "integer" : "number", f->min, f->max);
}

/* A refused field still has values that change nothing. */
static void add_neutral(struct text *out, const struct openai_field *f) {
    text_adds(out, "\"enum\":[null");
    const char *values = f->schema + 1; /* behind the bracket */
    if (*values != ']') text_adds(out, ",");
    openai_field_json(out, values);
}

void openapi_field(struct text *out, const struct openai_field *f,
                   const struct openapi_facts *facts) {
    static const char *const statuses[] = {"",
                                           "Refused but for what changes nothing: ", "Ignored: "};
    bool flag = f->read == openai_read_bool || f->read == openai_read_not;
    text_adds(out, "{");
    if (f->status == OPENAI_REFUSED)
        add_neutral(out, f);
    else if (f->schema)
        add_schema(out, f->schema, facts);
    else if (flag)
        text_adds(out, "\"type\":[\"boolean\",\"null\"]");
    else if (f->status == OPENAI_SUPPORTED && f->min < f->max)
        add_range(out, f);
    else if (f->read == openai_read_dimensions)
        text_addf(out, "\"enum\":[%d,null]", facts->hidden);
    if (f->status != OPENAI_IGNORED) text_adds(out, ",");
    text_adds(out, "\"description\":\"");
    text_adds(out, statuses[f->status]);
    text_add_escaped(out, f->doc, strlen(f->doc));
    text_adds(out, "\"}");
}

static void add_request(struct text *out, enum openai_kind kind,
                        const struct openapi_facts *facts) {
    size_t n, shown = 0;
    const struct openai_field *fields = openai_fields(&n);
    text_addf(out, "\"%s\":{\"type\":\"object\",", requests[kind].name);
    openai_field_json(out, requests[kind].required);
    text_addf(out, ",\"additionalProperties\":%s,\"properties\":{",
              facts->strict ? "false" : "true");
    for (size_t i = 0; i < n; i++) {
        if (!(fields[i].where & 1u << kind)) continue;
        text_addf(out, "%s\"%s\":", shown++ ? "," : "", fields[i].name);
        openapi_field(out, &fields[i], facts);
    }
    text_adds(out, "}}");
}

static bool can_stream(const char *body) {
    for (int kind = 0; kind < OPENAI_KINDS; kind++)
        if (!strcmp(body, requests[kind].name))
            return openai_field_find("stream", (enum openai_kind)kind) != NULL;
    return false;
}

/* -- Operations ---------------------------------------------------------------------------- */

static void add_reference(struct text *out, const char *type, const char *name) {
    text_addf(out, "\"%s\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}", type, name);
}

static int status_of(int kind) { return api_error_status((enum api_error_kind)kind); }

/* A status once, where its first kind of error is met, with the codes it may have. */
static void add_status(struct text *out, int first) {
    const char *comma = "";
    for (int kind = 0; kind < first; kind++)
        if (status_of(kind) == status_of(first)) return;
    text_addf(out, ",\"%d\":{\"description\":\"", status_of(first));
    for (int kind = first; kind < api_error_count(); kind++) {
        const char *code = api_error_code((enum api_error_kind)kind);
        if (status_of(kind) != status_of(first)) continue;
        text_addf(out, "%s%s", comma, code ? code : "code null");
        comma = ", ";
    }
    text_adds(out, "\",\"content\":{");
    add_reference(out, "application/json", "Error");
    text_adds(out, "}}");
}

static void add_answers(struct text *out, const struct router_row *row) {
    bool health = row->answer && !strcmp(row->answer, "Health");
    text_adds(out, "\"responses\":{\"200\":{\"description\":\"The answer\",\"content\":{");
    if (row->answer)
        add_reference(out, "application/json", row->answer);
    else
        text_adds(out, "\"text/plain\":{\"schema\":{\"type\":\"string\"}}");
    if (row->body && can_stream(row->body)) text_adds(out, ",\"text/event-stream\":{}");
    text_adds(out, "}}");
    if (health) {
        text_adds(out, ",\"503\":{\"description\":\"No\",\"content\":{");
        add_reference(out, "application/json", "Health");
        text_adds(out, "}}");
    }
    for (int kind = 0; row->body && kind < api_error_count(); kind++) add_status(out, kind);
    text_adds(out, ",\"default\":{\"description\":\"An error\",\"content\":{");
    add_reference(out, "application/json", "Error");
    text_adds(out, "}}}");
}

/* A row's name may be that of several paths; an operation has its own. */
static void add_operation_id(struct text *out, const struct router_row *row) {
    text_adds(out, "\"operationId\":\"");
    for (const char *p = row->method; *p; p++) text_addf(out, "%c", tolower((unsigned char)*p));
    for (const char *p = row->path; *p; p++)
        if (*p != '{' && *p != '}') text_addf(out, "%c", isalnum((unsigned char)*p) ? *p : '_');
    text_adds(out, "\"");
}

static void add_operation(struct text *out, const struct router_row *row) {
    text_adds(out, "\"");
    for (const char *p = row->method; *p; p++) text_addf(out, "%c", tolower((unsigned char)*p));
    text_adds(out, "\":{");
    add_operation_id(out, row);
    text_adds(out, ",\"summary\":");
    text_add_json(out, row->summary);
    text_adds(out, ",");
    const char *open = strchr(row->path, '{');
    if (open)
        text_addf(out,
                  "\"parameters\":[{\"name\":\"%.*s\",\"in\":\"path\",\"required\":true,"
                  "\"schema\":{\"type\":\"string\",\"minLength\":1}}],",
                  (int)(strlen(open) - 2), open + 1);
    if (row->body) {
        text_adds(out, "\"requestBody\":{\"required\":true,\"content\":{");
        add_reference(out, "application/json", row->body);
        text_adds(out, "}},");
    }
    add_answers(out, row);
    text_adds(out, "}");
}

/* All methods of the path, where its first row is met. */
static void add_path(struct text *out, int first, bool comma) {
    const char *path = router_get(first)->path;
    bool more = false;
    text_addf(out, "%s\"%s\":{", comma ? "," : "", path);
    for (int i = first; i < router_count(); i++) {
        const struct router_row *row = router_get(i);
        if (!row->summary || strcmp(row->path, path) != 0) continue;
        if (more) text_adds(out, ",");
        add_operation(out, row);
        more = true;
    }
    text_adds(out, "}");
}

static bool is_first(int row) {
    if (!router_get(row)->summary) return false;
    for (int i = 0; i < row; i++)
        if (router_get(i)->summary && !strcmp(router_get(i)->path, router_get(row)->path))
            return false;
    return true;
}

/* -- The document -------------------------------------------------------------------------- */

static void add_schemas(struct text *out, const struct openapi_facts *facts) {
    size_t n;
    const struct openapi_answer *answers = openapi_answers(&n);
    for (int kind = 0; kind < OPENAI_KINDS; kind++) {
        if (kind) text_adds(out, ",");
        add_request(out, (enum openai_kind)kind, facts);
    }
    for (size_t i = 0; i < n; i++) {
        text_addf(out, ",\"%s\":", answers[i].name);
        openai_field_json(out, answers[i].schema);
    }
}

void openapi_render(struct text *out, const struct openapi_facts *facts) {
    bool comma = false;
    text_adds(out,
              "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"gptqt\",\"version\":\"" GPTQT_VERSION
              "\",\"description\":\"Language models of 2 to 4 bits behind OpenAI's API.\"},");
    if (facts->keys) text_adds(out, "\"security\":[{\"key\":[]}],");
    text_adds(out, "\"paths\":{");
    for (int i = 0; i < router_count(); i++) {
        if (!is_first(i)) continue;
        add_path(out, i, comma);
        comma = true;
    }
    text_adds(out, "},\"components\":{");
    if (facts->keys)
        text_adds(out, "\"securitySchemes\":{\"key\":{\"type\":\"http\",\"scheme\":\"bearer\"}},");
    text_adds(out, "\"schemas\":{");
    add_schemas(out, facts);
    text_adds(out, "}}}");
}
