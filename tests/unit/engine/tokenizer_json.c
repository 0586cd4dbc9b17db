/* What a tokenizer.json may say, and what becomes of it when it does not. */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/tokenizers.h"

/* A whole tokenizer in little: bytes a, b, c, two merges. */
#define TINY(added, pre, post, decoder, model)                                                     \
    "{\"added_tokens\":[" added "],\"normalizer\":null,\"pre_tokenizer\":" pre                     \
    ",\"post_processor\":" post ",\"decoder\":" decoder ",\"model\":" model "}"
#define LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4}"
#define MODEL "{\"type\":\"BPE\"," VOCAB ",\"merges\":[\"a b\",[\"ab\",\"c\"]]}"

Test(tokenizer_json, names_what_it_refuses) {
    static const struct {
        int code;
        const char *json, *named;
    } cases[] = {
        {-EBADMSG, "", "not valid JSON"},
        {-EBADMSG, "[1]", "root"},
        {-EBADMSG, "{\"model\":7}", "model"},
        {-ENOTSUP, TINY("", LEVEL, "null", LEVEL, "{\"type\":\"Unigram\"}"), "Unigram"},
        {-ENOTSUP, TINY("", "{\"type\":\"Whitespace\"}", "null", LEVEL, MODEL), "Whitespace"},
        {-ENOTSUP, TINY("", "null", "null", LEVEL, MODEL), "pre_tokenizer"},
        {-ENOTSUP,
         TINY("", "{\"type\":\"Sequence\",\"pretokenizers\":[" LEVEL "," LEVEL "]}", "null", LEVEL,
              MODEL),
         "after ByteLevel"},
        {-ENOTSUP,
         TINY("", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Contiguous\"}",
              "null", LEVEL, MODEL),
         "Contiguous"},
        {-EBADMSG,
         TINY("", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\"}",
              "null", LEVEL, MODEL),
         "regular expression"},
        {-ENOTSUP, TINY("", LEVEL, "{\"type\":\"RobertaProcessing\"}", LEVEL, MODEL), "Roberta"},
        {-ENOTSUP, TINY("", LEVEL, "null", "{\"type\":\"WordPiece\"}", MODEL), "WordPiece"},
        {-ENOTSUP,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\",\"byte_fallback\":true," VOCAB ",\"merges\":[]}"),
         "byte_fallback"},
        {-ENOTSUP,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\",\"dropout\":0.1," VOCAB ",\"merges\":[]}"),
         "dropout"},
        {-ENOTSUP,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\"," VOCAB ",\"merges\":[]}"),
         "end_of_word_suffix"},
        {-ENOTSUP,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\",\"vocab\":{\"\xe2\x96\x81\":0},\"merges\":[]}"),
         "byte-level"},
        {-EBADMSG, TINY("", LEVEL, "null", LEVEL, "{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}"),
         "0 ids"},
        {-EBADMSG,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}"),
         "id 0 twice"},
        {-EBADMSG,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\",\"vocab\":{\"a\":1048576},\"merges\":[]}"),
         "0..1048575"},
        {-EBADMSG,
         TINY("", LEVEL, "null", LEVEL, "{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}"),
         "model.vocab"},
        {-EBADMSG,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\"," VOCAB ",\"merges\":[\"a b\",\"b c\"]}"),
         "merges[1]: 'bc'"},
        {-EBADMSG,
         TINY("", LEVEL, "null", LEVEL, "{\"type\":\"BPE\"," VOCAB ",\"merges\":[\"a b c\"]}"),
         "merges[0]"},
        {-EBADMSG,
         TINY("", LEVEL, "null", LEVEL, "{\"type\":\"BPE\"," VOCAB ",\"merges\":[[\"a\"]]}"),
         "merges[0]"},
        {-EBADMSG,
         TINY("", LEVEL, "null", LEVEL,
              "{\"type\":\"BPE\",\"unk_token\":\"?\"," VOCAB ",\"merges\":[]}"),
         "unk_token"},
        {-EBADMSG, TINY("{\"id\":\"x\",\"content\":\"x\"}", LEVEL, "null", LEVEL, MODEL), "added"},
        {-EBADMSG, TINY("{\"id\":9}", LEVEL, "null", LEVEL, MODEL), "content"},
        {-EBADMSG, TINY("{\"id\":1,\"content\":\"a\"}", LEVEL, "null", LEVEL, MODEL), "id 1"},
        {-EBADMSG, TINY("{\"id\":9,\"content\":\"a\"}", LEVEL, "null", LEVEL, MODEL), "id 9"},
        {-EBADMSG,
         TINY("{\"id\":9,\"content\":\"x\"},{\"id\":9,\"content\":\"y\"}", LEVEL, "null", LEVEL,
              MODEL),
         "id 9 twice"},
        {-EBADMSG,
         TINY("", LEVEL,
              "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}},"
              "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"s\":{\"ids\":[77]}}}",
              LEVEL, MODEL),
         "no token 77"},
        {-EBADMSG, TINY("", LEVEL, "{\"type\":\"TemplateProcessing\"}", LEVEL, MODEL), "Sequence"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokenizer *t = NULL;
        struct error err = {""};
        int r = tokenizer_parse(&t, cases[i].json, strlen(cases[i].json), &err);
        cr_expect_eq(r, cases[i].code, "case %zu: %d %s", i, r, err.text);
        cr_expect_not_null(strstr(err.text, cases[i].named), "case %zu: %s", i, err.text);
        cr_expect_null(t);
        tokenizer_free(t);
    }
}

Test(tokenizer_json, merges_by_rank) {
    static const char json[] = TINY("", LEVEL, "null", LEVEL, MODEL);
    struct tokenizer *t = tokenizers_parse(json, sizeof json - 1);
    int32_t *ids;
    size_t n;
    static const int32_t expected[] = {4, 0, 3, 2, 1};
    /* '?' has no token and vanishes: the words around it still part there */
    cr_assert_eq(tokenizer_encode(t, "abc?a?ab?cb", 11, 0, &ids, &n, NULL), 0);
    cr_assert_eq(n, 5);
    cr_expect_eq(memcmp(ids, expected, sizeof expected), 0);
    free(ids);
    tokenizer_free(t);
}

Test(tokenizer_json, unknown_bytes_become_the_unknown_token) {
    static const char single[] = TINY(
        "", LEVEL, "null", LEVEL, "{\"type\":\"BPE\",\"unk_token\":\"c\"," VOCAB ",\"merges\":[]}");
    static const char fused[] =
        TINY("", LEVEL, "null", LEVEL,
             "{\"type\":\"BPE\",\"unk_token\":\"c\",\"fuse_unk\":true," VOCAB ",\"merges\":[]}");
    static const struct {
        const char *json;
        size_t n;
    } cases[] = {{single, 5}, {fused, 3}};
    for (int i = 0; i < 2; i++) {
        struct tokenizer *t = tokenizers_parse(cases[i].json, strlen(cases[i].json));
        int32_t *ids;
        size_t n;
        cr_assert_eq(tokenizer_encode(t, "axyzb", 5, 0, &ids, &n, NULL), 0);
        cr_expect_eq(n, cases[i].n);
        cr_expect_eq(ids[1], 2);
        free(ids);
        tokenizer_free(t);
    }
}

/* Changes a few bytes; half of them to bytes that JSON is made of. */
static void mutate(char *text, size_t n, uint64_t *seed) {
    static const char marks[] = "{}[]\",:0123456789\\u-ntrue \xc4\xa0";
    for (int k = random_range(seed, 1, 6); k > 0; k--) {
        size_t at = (size_t)(random_next(seed) % n);
        switch (random_range(seed, 0, 3)) {
        case 0:
            text[at] = (char)random_range(seed, 0, 255);
            break;
        case 1:
            text[at] = marks[random_next(seed) % (sizeof marks - 1)];
            break;
        case 2:
            text[at] = text[random_next(seed) % n];
            break;
        default: {
            size_t len = (size_t)random_range(seed, 1, 40), from = (size_t)(random_next(seed) % n);
            if (from + len <= n && at + len <= n) memmove(text + at, text + from, len);
        }
        }
    }
}

static json_t *random_value(uint64_t *seed) {
    switch (random_range(seed, 0, 8)) {
    case 0:
        return json_null();
    case 1:
        return json_true();
    case 2:
        return json_integer(random_range(seed, -2, 2000));
    case 3:
        return json_integer(INT64_MAX);
    case 4:
        return json_real(0.5);
    case 5:
        return json_string("\xc4\xa0t");
    case 6:
        return json_string("[a-c]|(x*)*\\\\p{L}");
    case 7:
        return json_array();
    default:
        return json_object();
    }
}

/* Puts a random value, or another value's copy, somewhere into the tree. */
static void mutate_tree(json_t *node, json_t *root, uint64_t *seed) {
    for (int depth = 0;; depth++) {
        size_t size = json_is_object(node) ? json_object_size(node) : json_array_size(node);
        if (size == 0) return;
        size_t at = (size_t)(random_next(seed) % (size < 12 ? size : 12));
        void *iter = json_object_iter(node);
        for (size_t i = 0; iter && i < at; i++) iter = json_object_iter_next(node, iter);
        json_t *child = iter ? json_object_iter_value(iter) : json_array_get(node, at);
        bool leaf = !json_is_object(child) && !json_is_array(child);
        if (!leaf && random_range(seed, 0, 3)) {
            node = child;
            continue;
        }
        json_t *value = random_range(seed, 0, 3)
                            ? random_value(seed)
                            : json_deep_copy(json_object_get(root, "pre_tokenizer"));
        if (iter)
            json_object_iter_set_new(node, iter, value);
        else
            json_array_set_new(node, at, value);
        return;
    }
}

static int try_broken(const char *json, size_t n) {
    struct tokenizer *t = NULL;
    int32_t *ids = NULL;
    size_t n_ids;
    struct buf out = {0};
    if (tokenizer_parse(&t, json, n, NULL) < 0) return 0;
    int r = tokenizer_encode(t, "Hello  w\xc3\xb6rld 123's \xff", 22, 3, &ids, &n_ids, NULL);
    if (r == 0) cr_expect_eq(tokenizer_decode(t, ids, n_ids, false, &out), 0);
    cr_expect_eq(tokenizer_write_json(t, &out), 0);
    buf_free(&out);
    free(ids);
    tokenizer_free(t);
    return r == 0;
}

Test(tokenizer_json, mutated_files_do_no_harm) {
    static const char *const names[] = {"gpt2", "llama3", "qwen2", "bloom"};
    uint64_t seed = 20;
    int n_accepted = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n;
        char *json = tokenizers_read(names[i], &n), *broken = malloc(n);
        cr_assert_not_null(broken);
        size_t head = n < 6000 ? n : 6000; /* the settings; the rest is vocabulary */
        for (int k = 0; k < 100; k++) {
            memcpy(broken, json, n);
            mutate(broken, k % 3 ? head : n, &seed);
            n_accepted += try_broken(broken, n);
        }
        for (int k = 0; k < 100; k++) {
            json_t *root = json_loadb(json, n, JSON_ALLOW_NUL, NULL);
            for (int m = random_range(&seed, 1, 3); m > 0; m--) mutate_tree(root, root, &seed);
            char *text = json_dumps(root, JSON_COMPACT);
            n_accepted += try_broken(text, strlen(text));
            free(text);
            json_decref(root);
        }
        for (size_t cut = 0; cut < n; cut += n / 40) cr_expect_eq(try_broken(json, cut), 0);
        free(broken);
        free(json);
    }
    cr_expect_gt(n_accepted, 50, "%d: the changes are too coarse", n_accepted);
}
