#include "server/api/openapi.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "server/metrics.h"
#include "server/router.h"
#include "server/text.h"
#include "tests/support/schema.h"

static json_t *document(const struct openapi_facts *facts) {
    struct text text = {0};
    json_error_t where;
    openapi_render(&text, facts);
    json_t *root =
        json_loadb(text.data, text.n, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &where);
    cr_assert(root, "%s at %d", where.text, where.position);
    text_deinit(&text);
    return root;
}

static const struct openapi_facts facts = {.vocab = 100, .hidden = 8};

Test(openapi, every_row_of_the_router_is_there) {
    json_t *root = document(&facts);
    cr_expect(router_count() < METRICS_ROUTES);
    for (int i = 0; i < router_count(); i++) {
        const struct router_row *row = router_get(i);
        char method[16] = "";
        for (size_t k = 0; row->method[k]; k++) method[k] = (char)(row->method[k] | 32);
        const json_t *path = json_object_get(json_object_get(root, "paths"), row->path);
        cr_expect(!json_object_get(path, method) == !row->summary, "%s %s", method, row->path);
    }
    json_decref(root);
}

/* Whoever adds a row names schemas that exist, and operations have names of their own. */
static void expect_references(const json_t *root, const json_t *value, json_t *ids) {
    const char *name;
    json_t *member;
    if (json_is_object(value)) {
        json_object_foreach((json_t *)value, name, member) {
            const char *text = json_string_value(member);
            if (!strcmp(name, "$ref")) cr_expect(schema_resolve(root, text), "%s", text);
            if (!strcmp(name, "operationId")) {
                cr_expect(!json_object_get(ids, text), "%s twice", text);
                json_object_set_new(ids, text, json_true());
            }
            expect_references(root, member, ids);
        }
    }
    for (size_t i = 0; i < json_array_size(value); i++)
        expect_references(root, json_array_get(value, i), ids);
}

Test(openapi, references_lead_somewhere) {
    json_t *root = document(&facts), *ids = json_object();
    expect_references(root, root, ids);
    cr_expect(json_object_size(ids) > 10);
    json_decref(ids);
    json_decref(root);
}

Test(openapi, says_what_this_server_is) {
    static const char closed[] = "#/components/schemas/ChatRequest/additionalProperties";
    json_t *root = document(&facts);
    cr_expect(json_is_true(schema_resolve(root, closed)));
    cr_expect(!json_object_get(root, "security"));
    json_decref(root);
    const struct openapi_facts others = {.vocab = 100, .hidden = 8, .strict = true, .keys = true};
    root = document(&others);
    cr_expect(json_is_false(schema_resolve(root, closed)));
    cr_expect(json_object_get(root, "security"));
    const json_t *largest = schema_resolve(
        root, "#/components/schemas/DetokenizeRequest/properties/tokens/items/maximum");
    cr_expect(json_number_value(largest) == 99);
    json_decref(root);
}

static bool takes(const char *schema, const char *json) {
    char reference[128], where[512];
    json_t *root = document(&facts), *value = json_loads(json, 0, NULL);
    snprintf(reference, sizeof reference, "#/components/schemas/%s", schema);
    bool good = schema_check(root, schema_resolve(root, reference), value, where, sizeof where);
    json_decref(value);
    json_decref(root);
    return good;
}

Test(openapi, schemas_of_requests_tell_right_from_wrong) {
    cr_expect(takes("TokenizeRequest", "{\"prompt\":\"a\"}"));
    cr_expect(!takes("TokenizeRequest", "{}"));
    cr_expect(
        takes("EmbeddingRequest", "{\"input\":\"a\",\"pooling\":\"mean\",\"dimensions\":null}"));
    cr_expect(!takes("EmbeddingRequest", "{\"input\":\"a\",\"pooling\":\"max\"}"));
    cr_expect(takes("ChatRequest", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                                   "\"tools\":[],\"tool_choice\":\"auto\",\"user\":5}"));
    cr_expect(!takes("ChatRequest", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                                    "\"tools\":[{}]}"));
    cr_expect(!takes("ChatRequest", "{\"messages\":[{\"role\":\"tool\",\"content\":\"a\"}]}"));
}
