#include "tests/support/tokenizers.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/jsonl.h"

struct tokenizer *tokenizers_parse(const char *json, size_t n) {
    struct tokenizer *t = NULL;
    struct error err = {""};
    cr_assert_eq(tokenizer_parse(&t, json, n, &err), 0, "%s", err.text);
    return t;
}

char *tokenizers_read(const char *name, size_t *ret_n) {
    char path[128];
    snprintf(path, sizeof path, "tokenizers/%s/tokenizer.json", name);
    return jsonl_read(path, ret_n);
}

struct tokenizer *tokenizers_load(const char *name) {
    size_t n;
    char *json = tokenizers_read(name, &n);
    struct tokenizer *t = tokenizers_parse(json, n);
    free(json);
    return t;
}
