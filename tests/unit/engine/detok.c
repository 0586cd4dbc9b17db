#include "engine/detok.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/tokenizer.h"
#include "engine/utf8.h"
#include "tests/support/jsonl.h"
#include "tests/support/random.h"
#include "tests/support/tokenizers.h"

/* The library's streaming decoder holds a whole token's text back while it ends inside a
 * character; ours must never be behind it. */
static void expect_not_behind(const struct buf *ours, const struct buf *theirs, int line) {
    cr_expect(theirs->len <= ours->len && memcmp(ours->data, theirs->data, theirs->len) == 0,
              "line %d: '%s' is not the beginning of '%s'", line, theirs->data, ours->data);
}

static void check_row(const struct tokenizer *t, const json_t *row, int line) {
    const json_t *ids = json_object_get(row, "ids"), *id;
    const json_t *decoded = json_object_get(row, "decoded"), *steps = json_object_get(row, "steps");
    struct detok detok = {.skip_special = json_is_true(json_object_get(row, "skip_special"))};
    struct buf all = {0}, theirs = {0};
    size_t i;
    json_array_foreach(ids, i, id) {
        const json_t *step = json_array_get(steps, i);
        size_t before = all.len;
        cr_assert_eq(detok_push(&detok, t, (int32_t)json_integer_value(id), &all), 0);
        cr_expect(all.len == before || utf8_check(all.data + before, all.len - before));
        cr_assert_eq(buf_append(&theirs, json_string_value(step), json_string_length(step)), 0);
        if (all.len && !strstr(theirs.data, "\xef\xbf\xbd")) expect_not_behind(&all, &theirs, line);
    }
    cr_assert_eq(detok_flush(&detok, &all), 0);
    cr_expect(all.len == json_string_length(decoded) &&
                  (all.len == 0 || memcmp(all.data, json_string_value(decoded), all.len) == 0),
              "line %d: '%s' for '%s'", line, all.data, json_string_value(decoded));
    buf_free(&all);
    buf_free(&theirs);
}

Test(detok, joined_pieces_are_the_decoded_text) {
    static const char *const names[] = {"smollm2", "gpt2"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct tokenizer *t = tokenizers_load(names[i]);
        struct jsonl rows;
        json_t *row;
        char path[128];
        snprintf(path, sizeof path, "tokenizers/%s/decode.jsonl", names[i]);
        jsonl_open(&rows, path);
        while ((row = jsonl_next(&rows))) {
            check_row(t, row, rows.line);
            json_decref(row);
        }
        cr_expect_geq(rows.line, 336);
        jsonl_close(&rows);
        tokenizer_free(t);
    }
}

Test(detok, cuts_do_not_matter) {
    uint64_t seed = 8;
    static const char *const bits[] = {"a",    "\xc3\xa9", "\xe4\xb8\xad", "\xf0\x9f\x98\x80",
                                       "\xf0", "\x9f",     "\xe2\x82",     "\xff",
                                       "\xed", "\xa0",     "\xf4\x8f\xbf", "\xc0"};
    for (int round = 0; round < 2000; round++) {
        char text[128];
        size_t n = 0;
        for (int k = random_range(&seed, 0, 12); k > 0; k--) {
            const char *bit = bits[random_next(&seed) % (sizeof bits / sizeof *bits)];
            memcpy(text + n, bit, strlen(bit));
            n += strlen(bit);
        }
        struct detok whole = {.n_held = 0}, parts = {.n_held = 0};
        struct buf expected = {0}, got = {0};
        cr_assert_eq(detok_push_bytes(&whole, text, n, &expected), 0);
        cr_assert_eq(detok_flush(&whole, &expected), 0);
        for (size_t i = 0; i < n;) {
            size_t len = (size_t)random_range(&seed, 0, 3);
            if (len > n - i) len = n - i;
            cr_assert_eq(detok_push_bytes(&parts, text + i, len, &got), 0);
            cr_assert(utf8_check(got.data ? got.data : "", got.len));
            i += len;
        }
        cr_assert_eq(detok_flush(&parts, &got), 0);
        cr_assert_eq(got.len, expected.len);
        cr_assert(got.len == 0 || memcmp(got.data, expected.data, got.len) == 0);
        buf_free(&expected);
        buf_free(&got);
    }
}
