#include "server/api/openai_fields.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/api/openapi.h"
#include "server/text.h"

static json_t *load(const char *json) {
    struct text text = {0};
    openai_field_json(&text, json);
    json_t *value = json_loads(text.data, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
    text_deinit(&text);
    return value;
}

Test(openai_fields, rows_are_whole) {
    size_t n;
    const struct openai_field *f = openai_fields(&n);
    for (size_t i = 0; i < n; i++) {
        const struct openapi_facts facts = {.vocab = 256};
        struct text schema = {0};
        cr_expect(f[i].where && *f[i].doc, "%s", f[i].name);
        cr_expect((f[i].read == NULL) == (f[i].status == OPENAI_IGNORED), "%s", f[i].name);
        openapi_field(&schema, &f[i], &facts);
        json_t *value = json_loads(schema.data, JSON_DECODE_INT_AS_REAL, NULL);
        cr_expect(value, "%s: its schema is not JSON: %s", f[i].name, schema.data);
        json_decref(value);
        text_deinit(&schema);
        value = f[i].status == OPENAI_REFUSED ? load(f[i].schema) : NULL;
        cr_expect(f[i].status != OPENAI_REFUSED || json_is_array(value), "%s", f[i].name);
        json_decref(value);
        value = f[i].example ? load(f[i].example) : json_true();
        cr_expect(value, "%s: its example is not JSON", f[i].name);
        json_decref(value);
    }
}

/* One endpoint, one meaning. */
Test(openai_fields, no_row_hides_another) {
    size_t n;
    const struct openai_field *f = openai_fields(&n);
    for (size_t i = 0; i < n; i++)
        for (int kind = 0; kind < OPENAI_KINDS; kind++)
            if (f[i].where & 1u << kind)
                cr_expect(openai_field_find(f[i].name, (enum openai_kind)kind) == &f[i], "%s in %s",
                          f[i].name, openai_kind_name((enum openai_kind)kind));
    cr_expect(!openai_field_find("nothing", OPENAI_CHAT));
    cr_expect(!openai_field_find("messages", OPENAI_COMPLETION));
}

static char *read_file(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", getenv("GPTQT_SOURCE"), name);
    FILE *file = fopen(path, "r");
    cr_assert(file, "%s", path);
    char *text = calloc(1, 1 << 20);
    cr_assert(text && fread(text, 1, (1 << 20) - 1, file) > 0);
    fclose(file);
    return text;
}

/* The README's table is this one, line by line: print it anew where it is not. */
Test(openai_fields, the_readme_has_the_table) {
    static const char *const statuses[] = {"supported", "refused", "ignored"};
    size_t n;
    struct text table = {0};
    const struct openai_field *f = openai_fields(&n);
    text_adds(&table, "| field | endpoints | status | meaning |\n| --- | --- | --- | --- |\n");
    for (size_t i = 0; i < n; i++) {
        text_addf(&table, "| `%s` | ", f[i].name);
        openai_field_where(&table, &f[i]);
        text_addf(&table, " | %s | %s", statuses[f[i].status], f[i].doc);
        if (f[i].status == OPENAI_REFUSED && strcmp(f[i].schema, "[]") != 0) {
            text_adds(&table, "; taken: `");
            openai_field_json(&table, f[i].schema);
            text_adds(&table, "`");
        }
        text_adds(&table, " |\n");
    }
    char *readme = read_file("server/README.md");
    cr_expect(strstr(readme, table.data), "server/README.md should have:\n%s", table.data);
    free(readme);
    text_deinit(&table);
}
