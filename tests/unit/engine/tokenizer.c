#include "engine/tokenizer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/detok.h"
#include "engine/nfc.h"
#include "kernels/error.h"
#include "tests/support/jsonl.h"
#include "tests/support/random.h"
#include "tests/support/tokenizers.h"

static void expect_ids(const struct tokenizer *t, const char *what, int line, const json_t *text,
                       unsigned flags, const json_t *expected) {
    int32_t *ids = NULL;
    size_t n = 0;
    struct error err = {""};
    int r = tokenizer_encode(t, json_string_value(text), json_string_length(text), flags, &ids, &n,
                             &err);
    cr_assert_eq(r, 0, "%s line %d: %s", what, line, err.text);
    cr_expect_eq(n, json_array_size(expected), "%s line %d: %zu ids for %zu", what, line, n,
                 json_array_size(expected));
    for (size_t i = 0; i < n && i < json_array_size(expected); i++) {
        json_int_t want = json_integer_value(json_array_get(expected, i));
        if (ids[i] == want) continue;
        cr_expect(false, "%s line %d: id %zu is %d for %d", what, line, i, (int)ids[i], (int)want);
        break;
    }
    free(ids);
}

static bool is(const json_t *row, const char *name, bool otherwise) {
    const json_t *value = json_object_get(row, name);
    return value ? json_is_true(value) : otherwise;
}

/* vectors.jsonl and fuzz.jsonl */
static int check_encoding(const struct tokenizer *t, const char *what, struct jsonl *rows) {
    int n = 0;
    json_t *row;
    while ((row = jsonl_next(rows))) {
        unsigned flags = (is(row, "add_special", false) ? TOKENIZER_ADD_SPECIAL : 0) |
                         (is(row, "parse_special", true) ? TOKENIZER_PARSE_SPECIAL : 0);
        expect_ids(t, what, rows->line, json_object_get(row, "text"), flags,
                   json_object_get(row, "ids"));
        json_decref(row);
        n++;
    }
    jsonl_close(rows);
    return n;
}

static int check_file(const struct tokenizer *t, const char *name, const char *file) {
    char path[128];
    struct jsonl rows;
    snprintf(path, sizeof path, "tokenizers/%s/%s", name, file);
    jsonl_open(&rows, path);
    return check_encoding(t, path, &rows);
}

static int32_t *take_ids(const json_t *list, size_t *ret_n) {
    *ret_n = json_array_size(list);
    int32_t *ids = malloc((*ret_n + 1) * sizeof *ids);
    cr_assert_not_null(ids);
    for (size_t i = 0; i < *ret_n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return ids;
}

static void expect_decoded(const struct tokenizer *t, int line, const json_t *list, bool skip,
                           const json_t *expected) {
    size_t n;
    int32_t *ids = take_ids(list, &n);
    struct buf bytes = {0}, text = {0};
    struct detok detok = {.n_held = 0};
    cr_assert_eq(tokenizer_decode(t, ids, n, skip, &bytes), 0);
    cr_assert_eq(detok_push_bytes(&detok, bytes.data, bytes.len, &text), 0);
    cr_assert_eq(detok_flush(&detok, &text), 0);
    cr_expect(text.len == json_string_length(expected) &&
                  (text.len == 0 || memcmp(text.data, json_string_value(expected), text.len) == 0),
              "line %d: '%s' for '%s'", line, text.data, json_string_value(expected));
    buf_free(&bytes);
    buf_free(&text);
    free(ids);
}

static void check_decoding(const struct tokenizer *t, const char *name) {
    char path[128];
    struct jsonl rows;
    json_t *row;
    snprintf(path, sizeof path, "tokenizers/%s/vectors.jsonl", name);
    jsonl_open(&rows, path);
    while ((row = jsonl_next(&rows))) {
        const json_t *ids = json_object_get(row, "ids");
        const json_t *whole = json_object_get(row, "decoded");
        const json_t *skipped = json_object_get(row, "decoded_skip_special");
        expect_decoded(t, rows.line, ids, false, whole);
        expect_decoded(t, rows.line, ids, true, skipped ? skipped : whole);
        json_decref(row);
    }
    jsonl_close(&rows);
}

Test(tokenizer, equals_the_reference_for_smollm2) {
    struct tokenizer *t = tokenizers_load("smollm2");
    cr_expect_eq(tokenizer_vocab_size(t), 49152);
    cr_expect_eq(check_file(t, "smollm2", "vectors.jsonl"), 495);
    check_decoding(t, "smollm2");
    tokenizer_free(t);
}

Test(tokenizer, equals_the_reference_for_gpt2) {
    struct tokenizer *t = tokenizers_load("gpt2");
    cr_expect_eq(check_file(t, "gpt2", "vectors.jsonl"), 437);
    cr_expect_eq(check_file(t, "gpt2", "fuzz.jsonl"), 1000);
    check_decoding(t, "gpt2");
    tokenizer_free(t);
}

Test(tokenizer, equals_the_reference_for_llama3) {
    struct tokenizer *t = tokenizers_load("llama3");
    cr_expect_eq(check_file(t, "llama3", "vectors.jsonl"), 495);
    cr_expect_eq(check_file(t, "llama3", "fuzz.jsonl"), 1000);
    check_decoding(t, "llama3");
    tokenizer_free(t);
}

Test(tokenizer, equals_the_reference_for_bloom) {
    struct tokenizer *t = tokenizers_load("bloom");
    cr_expect_eq(check_file(t, "bloom", "vectors.jsonl"), 469);
    cr_expect_eq(check_file(t, "bloom", "fuzz.jsonl"), 1000);
    check_decoding(t, "bloom");
    tokenizer_free(t);
}

Test(tokenizer, equals_the_reference_for_qwen2) {
    if (!nfc_available()) cr_skip_test("built without NFC");
    struct tokenizer *t = tokenizers_load("qwen2");
    cr_expect_eq(check_file(t, "qwen2", "vectors.jsonl"), 495);
    cr_expect_eq(check_file(t, "qwen2", "fuzz.jsonl"), 1000);
    check_decoding(t, "qwen2");
    tokenizer_free(t);
}

Test(tokenizer, equals_the_reference_for_random_texts_of_smollm2) {
    struct jsonl rows;
    jsonl_open_shared(&rows, "fixtures/tokenizers/smollm2/fuzz.jsonl");
    struct tokenizer *t = tokenizers_load("smollm2");
    cr_expect_eq(check_encoding(t, "fuzz.jsonl", &rows), 1000);
    tokenizer_free(t);
}

/* options.jsonl: what the tokenizers library 0.23.1 (Python) answers for random added tokens,
 * splits, normalizers and templates put into another file's place. */
Test(tokenizer, equals_the_reference_for_rare_settings) {
    struct jsonl rows;
    json_t *row;
    int n = 0;
    jsonl_open(&rows, "tokenizers/options.jsonl");
    while ((row = jsonl_next(&rows))) {
        json_t *patch = json_object_get(row, "patch"), *item;
        bool skip = json_object_get(patch, "normalizer") && !nfc_available();
        size_t n_json, i;
        char *json = tokenizers_read(json_string_value(json_object_get(row, "base")), &n_json);
        json_t *root = json_loadb(json, n_json, JSON_ALLOW_NUL, NULL);
        json_object_update(root, patch);
        char *patched = json_dumps(root, JSON_COMPACT);
        struct tokenizer *t = skip ? NULL : tokenizers_parse(patched, strlen(patched));
        json_array_foreach(json_object_get(row, "cases"), i, item) {
            unsigned flags = (is(item, "add_special", false) ? TOKENIZER_ADD_SPECIAL : 0) |
                             (is(item, "parse_special", true) ? TOKENIZER_PARSE_SPECIAL : 0);
            if (!skip)
                expect_ids(t, "options.jsonl", rows.line, json_object_get(item, "text"), flags,
                           json_object_get(item, "ids"));
            n++;
        }
        tokenizer_free(t);
        free(patched);
        free(json);
        json_decref(root);
        json_decref(row);
    }
    jsonl_close(&rows);
    cr_expect_eq(n, 1280);
}

static struct tokenizer *rewritten(const struct tokenizer *t) {
    struct buf json = {0};
    cr_assert_eq(tokenizer_write_json(t, &json), 0);
    struct tokenizer *again = tokenizers_parse(json.data, json.len);
    struct buf twice = {0};
    cr_assert_eq(tokenizer_write_json(again, &twice), 0);
    cr_expect(twice.len == json.len && memcmp(twice.data, json.data, json.len) == 0);
    buf_free(&json);
    buf_free(&twice);
    return again;
}

Test(tokenizer, a_written_file_describes_the_same_tokenizer) {
    static const char *const names[] = {"smollm2", "gpt2", "llama3", "bloom", "qwen2"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], "qwen2") == 0 && !nfc_available()) continue;
        struct tokenizer *t = tokenizers_load(names[i]), *again = rewritten(t);
        cr_expect_eq(tokenizer_vocab_size(again), tokenizer_vocab_size(t));
        cr_expect_gt(check_file(again, names[i], "vectors.jsonl"), 400);
        check_decoding(again, names[i]);
        tokenizer_free(again);
        tokenizer_free(t);
    }
}

/* What a GGUF file would say about the tokenizer in a tokenizer.json. */
struct gguf_parts {
    json_t *root;
    struct tokenizer_text *tokens, *merges;
    int32_t *types;
    char **joined;
    struct tokenizer_gguf parts;
};

static void fill_tokens(struct gguf_parts *g, size_t n) {
    const char *key;
    json_t *value;
    size_t i;
    g->tokens = calloc(n, sizeof *g->tokens);
    g->types = calloc(n, sizeof *g->types);
    for (i = 0; i < n; i++) g->types[i] = 1;
    json_object_foreach(json_object_get(json_object_get(g->root, "model"), "vocab"), key, value) {
        json_int_t id = json_integer_value(value);
        g->tokens[id] = (struct tokenizer_text){key, strlen(key)};
    }
    json_array_foreach(json_object_get(g->root, "added_tokens"), i, value) {
        json_int_t id = json_integer_value(json_object_get(value, "id"));
        const json_t *content = json_object_get(value, "content");
        g->tokens[id] =
            (struct tokenizer_text){json_string_value(content), json_string_length(content)};
        g->types[id] = is(value, "special", false) ? 3 : 4;
    }
    g->parts.tokens = g->tokens;
    g->parts.types = g->types;
    g->parts.n_tokens = n;
}

static void fill_merges(struct gguf_parts *g) {
    const json_t *list = json_object_get(json_object_get(g->root, "model"), "merges"), *entry;
    size_t n = json_array_size(list), i;
    g->merges = calloc(n + 1, sizeof *g->merges);
    g->joined = calloc(n + 1, sizeof *g->joined);
    json_array_foreach(list, i, entry) {
        struct buf line = {0};
        if (json_is_string(entry))
            buf_puts(&line, json_string_value(entry));
        else
            buf_printf(&line, "%s %s", json_string_value(json_array_get(entry, 0)),
                       json_string_value(json_array_get(entry, 1)));
        g->joined[i] = line.data;
        g->merges[i] = (struct tokenizer_text){line.data, line.len};
    }
    g->parts.merges = g->merges;
    g->parts.n_merges = n;
}

static void gguf_parts_init(struct gguf_parts *g, const char *name, size_t n, const char *pre) {
    size_t n_json;
    char *json = tokenizers_read(name, &n_json);
    *g = (struct gguf_parts){.root = json_loadb(json, n_json, JSON_ALLOW_NUL, NULL),
                             .parts = {.pre = pre, .bos_id = -1, .eos_id = -1}};
    free(json);
    fill_tokens(g, n);
    fill_merges(g);
}

static void gguf_parts_deinit(struct gguf_parts *g) {
    for (size_t i = 0; i < g->parts.n_merges; i++) free(g->joined[i]);
    free(g->joined);
    free(g->merges);
    free(g->tokens);
    free(g->types);
    json_decref(g->root);
}

static struct tokenizer *from_gguf(const struct gguf_parts *g) {
    struct tokenizer *t = NULL;
    struct error err = {""};
    cr_assert_eq(tokenizer_from_gguf(&t, &g->parts, &err), 0, "%s", err.text);
    return t;
}

Test(tokenizer, gguf_parts_give_the_same_ids) {
    static const struct {
        const char *name, *pre;
        size_t n;
        int32_t bos;
    } cases[] = {{"smollm2", "smollm", 49152, -1},
                 {"gpt2", "gpt-2", 1201, -1},
                 {"llama3", "llama-bpe", 1509, 1500},
                 {"qwen2", "qwen2", 1407, -1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(cases[i].name, "qwen2") == 0 && !nfc_available()) continue;
        struct gguf_parts g;
        gguf_parts_init(&g, cases[i].name, cases[i].n, cases[i].pre);
        g.parts.bos_id = cases[i].bos;
        g.parts.add_bos = -1;
        struct tokenizer *t = from_gguf(&g), *again = rewritten(t);
        cr_expect_gt(check_file(t, cases[i].name, "vectors.jsonl"), 400);
        cr_expect_gt(check_file(again, cases[i].name, "vectors.jsonl"), 400);
        tokenizer_free(t);
        tokenizer_free(again);
        gguf_parts_deinit(&g);
    }
}

Test(tokenizer, gguf_defaults_split_as_llama_cpp_does) {
    struct gguf_parts g;
    gguf_parts_init(&g, "gpt2", 1201, NULL);
    struct tokenizer *t = from_gguf(&g);
    int32_t *ids;
    size_t n;
    /* digits in threes from the left, punctuation apart from the space before it */
    cr_assert_eq(tokenizer_encode(t, "1234 !", 6, 0, &ids, &n, NULL), 0);
    struct buf text = {0};
    for (size_t i = 0; i < n; i++) {
        buf_puts(&text, i ? "|" : "");
        cr_assert_eq(tokenizer_decode(t, ids + i, 1, false, &text), 0);
    }
    cr_expect_not_null(strstr(text.data, "4| |!"), "%s", text.data);
    buf_free(&text);
    free(ids);
    tokenizer_free(t);
    gguf_parts_deinit(&g);
}

Test(tokenizer, malformed_gguf_parts_are_refused) {
    struct gguf_parts g;
    struct tokenizer *t = NULL;
    struct error err;
    gguf_parts_init(&g, "gpt2", 1201, "gpt-2");
    struct tokenizer_gguf parts = g.parts;
    parts.pre = "viking";
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -ENOTSUP);
    cr_expect_not_null(strstr(err.text, "viking"), "%s", err.text);
    parts = g.parts;
    parts.add_bos = true;
    parts.bos_id = 1201;
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -EBADMSG);
    parts.bos_id = -1;
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -EBADMSG);
    parts = g.parts;
    parts.n_tokens = 0;
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -EBADMSG);
    parts = g.parts;
    g.tokens[7] = g.tokens[8];
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -EBADMSG);
    g.tokens[7] = (struct tokenizer_text){"\xff\xfe", 2};
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -EBADMSG);
    cr_expect_not_null(strstr(err.text, "not UTF-8"), "%s", err.text);
    g.types[7] = 9;
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -EBADMSG);
    g.types[7] = 1;
    g.merges[3] = (struct tokenizer_text){"one", 3};
    cr_expect_eq(tokenizer_from_gguf(&t, &parts, &err), -EBADMSG);
    cr_expect_null(t);
    gguf_parts_deinit(&g);
}

static char *random_bytes(uint64_t *seed, size_t n) {
    char *text = malloc(n + 1);
    cr_assert_not_null(text);
    for (size_t i = 0; i < n; i++) text[i] = (char)random_range(seed, 0, 255);
    text[n] = '\0';
    return text;
}

static void expect_round_trip(const struct tokenizer *t, const char *text, size_t n) {
    int32_t *ids = NULL;
    size_t n_ids = 0;
    struct buf back = {0};
    cr_assert_eq(tokenizer_encode(t, text, n, 0, &ids, &n_ids, NULL), 0);
    cr_assert_eq(tokenizer_decode(t, ids, n_ids, false, &back), 0);
    cr_expect(back.len == n && (n == 0 || memcmp(back.data, text, n) == 0), "%zu bytes became %zu",
              n, back.len);
    buf_free(&back);
    free(ids);
}

Test(tokenizer, any_bytes_come_back) {
    static const char *const names[] = {"gpt2", "llama3", "bloom"};
    uint64_t seed = 11;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct tokenizer *t = tokenizers_load(names[i]);
        for (int k = 0; k < 300; k++) {
            size_t n = (size_t)random_range(&seed, 0, 60);
            char *text = random_bytes(&seed, n);
            expect_round_trip(t, text, n);
            free(text);
        }
        expect_round_trip(t, NULL, 0);
        tokenizer_free(t);
    }
}

Test(tokenizer, words_of_a_megabyte_are_no_trouble) {
    struct tokenizer *t = tokenizers_load("gpt2");
    size_t n = 1 << 20;
    uint64_t seed = 3;
    char *text = random_bytes(&seed, n);
    expect_round_trip(t, text, n);
    static const char fill[] = {'a', ' ', '\n', '\xff', '\'', '1'};
    for (size_t i = 0; i < sizeof fill; i++) {
        memset(text, fill[i], n);
        expect_round_trip(t, text, n);
    }
    for (size_t i = 0; i < n; i++)
        text[i] = "the and ing"[i % 11] == ' ' ? 'e' : "the and ing"[i % 11];
    expect_round_trip(t, text, n);
    free(text);
    tokenizer_free(t);
}

Test(tokenizer, texts_over_the_limit_are_refused) {
    struct tokenizer *t = tokenizers_load("gpt2");
    struct error err;
    int32_t *ids = NULL;
    size_t n;
    cr_expect_eq(tokenizer_encode(t, "", (size_t)TOKENIZER_MAX_TEXT + 1, 0, &ids, &n, &err),
                 -E2BIG);
    cr_expect_null(ids);
    tokenizer_free(t);
}

Test(tokenizer, tells_about_single_tokens) {
    struct tokenizer *t = tokenizers_load("smollm2");
    cr_expect_eq(tokenizer_find(t, "<|im_end|>"), 2);
    cr_expect_eq(tokenizer_find(t, "<|nothing|>"), -1);
    cr_expect(tokenizer_is_special(t, 2));
    int32_t the = tokenizer_find(t, "\xc4\xa0the");
    cr_assert_geq(the, 17);
    cr_expect_not(tokenizer_is_special(t, the));
    struct tokenizer_text piece = tokenizer_piece(t, the);
    cr_expect(piece.n == 4 && memcmp(piece.data, " the", 4) == 0);
    static const int32_t none[] = {-1, 49152, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        cr_expect_eq(tokenizer_piece(t, none[i]).n, 0);
        cr_expect_not(tokenizer_is_special(t, none[i]));
    }
    struct buf out = {0};
    cr_expect_eq(tokenizer_decode(t, none, 4, false, &out), 0);
    cr_expect_eq(out.len, 0);
    buf_free(&out);
    cr_expect_str_eq(tokenizer_kind(t), "byte-level BPE");
    tokenizer_free(t);
    tokenizer_free(NULL);
}
