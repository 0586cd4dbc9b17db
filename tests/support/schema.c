#include "tests/support/schema.h"

#include <stdio.h>
#include <string.h>

struct check {
    const json_t *document;
    char *where;
    size_t size;
};

static bool check(struct check *c, const json_t *schema, const json_t *value, const char *path);

static bool wrong(struct check *c, const char *path, const char *why) {
    snprintf(c->where, c->size, "%s: %s", path, why);
    return false;
}

const json_t *schema_resolve(const json_t *document, const char *reference) {
    char part[128];
    const json_t *at = document;
    if (strncmp(reference, "#/", 2) != 0) return NULL;
    for (const char *p = reference + 2; at && *p;) {
        size_t n = strcspn(p, "/");
        snprintf(part, sizeof part, "%.*s", (int)n, p);
        at = json_object_get(at, part);
        p += n + (p[n] == '/');
    }
    return at;
}

static bool is_type(const json_t *value, const char *type) {
    if (!strcmp(type, "object")) return json_is_object(value);
    if (!strcmp(type, "array")) return json_is_array(value);
    if (!strcmp(type, "string")) return json_is_string(value);
    if (!strcmp(type, "integer")) return json_is_integer(value);
    if (!strcmp(type, "number")) return json_is_number(value);
    if (!strcmp(type, "boolean")) return json_is_boolean(value);
    return !strcmp(type, "null") && json_is_null(value);
}

static bool check_type(struct check *c, const json_t *types, const json_t *value,
                       const char *path) {
    bool good = json_is_string(types) && is_type(value, json_string_value(types));
    for (size_t i = 0; i < json_array_size(types) && !good; i++)
        good = is_type(value, json_string_value(json_array_get(types, i)));
    return good || wrong(c, path, "type");
}

static bool check_enum(struct check *c, const json_t *list, const json_t *value, const char *path) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_equal(json_array_get(list, i), value)) return true;
    return wrong(c, path, "enum");
}

static bool check_alternatives(struct check *c, const json_t *list, const json_t *value,
                               const char *path, bool one) {
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(list); i++)
        n += check(c, json_array_get(list, i), value, path);
    return one ? n == 1 : n > 0; /* where is of the last one tried */
}

static bool check_properties(struct check *c, const json_t *schema, const json_t *value,
                             const char *path) {
    const json_t *known = json_object_get(schema, "properties");
    const json_t *others = json_object_get(schema, "additionalProperties");
    const char *name;
    json_t *member;
    json_object_foreach((json_t *)value, name, member) {
        char inner[256];
        const json_t *wanted = json_object_get(known, name);
        snprintf(inner, sizeof inner, "%.150s.%.80s", path, name);
        if (!wanted && json_is_false(others)) return wrong(c, inner, "not known");
        if (!wanted && json_is_object(others)) wanted = others;
        if (wanted && !check(c, wanted, member, inner)) return false;
    }
    return true;
}

static bool check_items(struct check *c, const json_t *items, const json_t *value,
                        const char *path) {
    for (size_t i = 0; i < json_array_size(value); i++) {
        char inner[256];
        snprintf(inner, sizeof inner, "%.200s[%zu]", path, i);
        if (!check(c, items, json_array_get(value, i), inner)) return false;
    }
    return true;
}

static bool check_required(struct check *c, const json_t *list, const json_t *value,
                           const char *path) {
    for (size_t i = 0; json_is_object(value) && i < json_array_size(list); i++)
        if (!json_object_get(value, json_string_value(json_array_get(list, i))))
            return wrong(c, path, json_string_value(json_array_get(list, i)));
    return true;
}

static bool check_number(struct check *c, const char *word, double limit, const json_t *value,
                         const char *path) {
    double number = json_number_value(value);
    if (!strcmp(word, "minItems")) number = (double)json_array_size(value);
    if (!strcmp(word, "maxItems")) number = (double)json_array_size(value);
    if (!strcmp(word, "minLength")) number = (double)json_string_length(value);
    bool most = !strncmp(word, "max", 3);
    bool numeric = json_is_number(value) || (strchr(word, 'I') && json_is_array(value)) ||
                   (strchr(word, 'L') && json_is_string(value));
    return !numeric || (most ? number <= limit : number >= limit) || wrong(c, path, word);
}

static bool check_word(struct check *c, const json_t *schema, const char *word,
                       const json_t *wanted, const json_t *value, const char *path) {
    static const char *const silent[] = {"description", "pattern", "maxLength", "propertyNames",
                                         "maxProperties"};
    for (size_t i = 0; i < sizeof silent / sizeof *silent; i++)
        if (!strcmp(word, silent[i])) return true;
    if (!strcmp(word, "type")) return check_type(c, wanted, value, path);
    if (!strcmp(word, "const")) return json_equal(wanted, value) || wrong(c, path, "const");
    if (!strcmp(word, "not")) return !check(c, wanted, value, path) || wrong(c, path, "not");
    if (!strcmp(word, "enum")) return check_enum(c, wanted, value, path);
    if (!strcmp(word, "required")) return check_required(c, wanted, value, path);
    if (!strcmp(word, "properties")) return check_properties(c, schema, value, path);
    if (!strcmp(word, "additionalProperties"))
        return json_object_get(schema, "properties") || check_properties(c, schema, value, path);
    if (!strcmp(word, "items")) return check_items(c, wanted, value, path);
    if (!strcmp(word, "anyOf")) return check_alternatives(c, wanted, value, path, false);
    if (!strcmp(word, "oneOf")) return check_alternatives(c, wanted, value, path, true);
    if (!strcmp(word, "$ref"))
        return check(c, schema_resolve(c->document, json_string_value(wanted)), value, path);
    if (json_is_number(wanted))
        return check_number(c, word, json_number_value(wanted), value, path);
    return wrong(c, path, word);
}

static bool check(struct check *c, const json_t *schema, const json_t *value, const char *path) {
    const char *word;
    json_t *wanted;
    if (!json_is_object(schema)) return wrong(c, path, "there is no such schema");
    json_object_foreach((json_t *)schema, word, wanted) {
        if (!check_word(c, schema, word, wanted, value, path)) return false;
    }
    return true;
}

bool schema_check(const json_t *document, const json_t *schema, const json_t *value, char *where,
                  size_t size) {
    struct check c = {document, where, size};
    *where = 0;
    return check(&c, schema, value, "");
}
