#include "tests/support/jsonl.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_file(const char *folder, const char *path, size_t *ret_n) {
    char name[4096];
    snprintf(name, sizeof name, "%s/%s", folder, path);
    FILE *file = fopen(name, "rb");
    cr_assert_not_null(file, "cannot open %s", name);
    cr_assert_eq(fseek(file, 0, SEEK_END), 0);
    long n = ftell(file);
    cr_assert_geq(n, 0);
    rewind(file);
    char *text = malloc((size_t)n + 1);
    cr_assert_not_null(text);
    cr_assert_eq(fread(text, 1, (size_t)n, file), (size_t)n);
    text[n] = '\0';
    fclose(file);
    *ret_n = (size_t)n;
    return text;
}

char *jsonl_read(const char *path, size_t *ret_n) {
    const char *folder = getenv("GPTQT_FIXTURES");
    return read_file(folder ? folder : "tests/fixtures", path, ret_n);
}

char *jsonl_read_shared(const char *path, size_t *ret_n) {
    const char *folder = getenv("GPTQT_SHARED");
    if (!folder) cr_skip_test("GPTQT_SHARED is not set: no %s", path);
    return read_file(folder, path, ret_n);
}

void jsonl_open(struct jsonl *j, const char *path) {
    *j = (struct jsonl){0};
    j->text = jsonl_read(path, &j->n);
}

void jsonl_open_shared(struct jsonl *j, const char *path) {
    *j = (struct jsonl){0};
    j->text = jsonl_read_shared(path, &j->n);
}

json_t *jsonl_next(struct jsonl *j) {
    if (j->at >= j->n) return NULL;
    const char *line = j->text + j->at, *end = memchr(line, '\n', j->n - j->at);
    size_t n = end ? (size_t)(end - line) : j->n - j->at;
    j->at += n + 1;
    j->line++;
    json_error_t why;
    size_t flags = JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_t *value = json_loadb(line, n, flags, &why);
    if (!value && json_error_code(&why) == json_error_numeric_overflow)
        value = json_loadb(line, n, flags | JSON_DECODE_INT_AS_REAL, &why);
    cr_assert_not_null(value, "line %d: %s", j->line, why.text);
    return value;
}

void jsonl_close(struct jsonl *j) {
    free(j->text);
    *j = (struct jsonl){0};
}
