#include "engine/stop.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/utf8.h"
#include "kernels/error.h"
#include "tests/support/random.h"

static void begin(struct stop *s, const char *const *strings, int n) {
    size_t lengths[STOP_MAX];
    struct error err = {""};
    for (int i = 0; i < n; i++) lengths[i] = strlen(strings[i]);
    cr_assert_eq(stop_init(s, strings, lengths, n, &err), 0, "%s", err.text);
}

/* What the text is cut to: the definition, in quadratic time. */
static size_t cut_naively(const char *const *strings, int n_strings, const char *text, size_t n,
                          int *ret_matched) {
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (int i = 0; i < n_strings; i++) {
            size_t len = strlen(strings[i]);
            if (len > end || len <= longest || memcmp(text + end - len, strings[i], len)) continue;
            longest = len;
            *ret_matched = i;
        }
        if (longest) return end - longest;
    }
    *ret_matched = -1;
    return n;
}

/* Whether the text could still turn out to end where output ends: some stop string's beginning
 * follows it. */
static bool is_needed(const char *const *strings, int n_strings, const char *held, size_t n) {
    for (int i = 0; i < n_strings; i++)
        if (strlen(strings[i]) > n && memcmp(strings[i], held, n) == 0) return true;
    return n == 0;
}

static void check_random(uint64_t *seed) {
    static const char letters[] = "aab";
    char storage[4][8], text[64];
    const char *strings[4];
    int n_strings = random_range(seed, 0, 4), n = random_range(seed, 0, 60), expected_match;
    for (int i = 0; i < n_strings; i++) {
        int len = random_range(seed, 1, 6);
        for (int k = 0; k < len; k++) storage[i][k] = letters[random_range(seed, 0, 2)];
        storage[i][len] = '\0';
        strings[i] = storage[i];
    }
    for (int i = 0; i < n; i++) text[i] = "abc"[random_range(seed, 0, 2)];
    size_t expected = cut_naively(strings, n_strings, text, (size_t)n, &expected_match);

    struct stop s;
    struct buf out = {0};
    int ended = 0;
    begin(&s, strings, n_strings);
    for (int i = 0; i < n && !ended;) {
        int len = random_range(seed, 0, 5);
        if (len > n - i) len = n - i;
        ended = stop_push(&s, text + i, (size_t)len, &out);
        cr_assert_geq(ended, 0);
        i += len;
        if (!ended) {
            cr_assert_eq(out.len + s.n_held, (size_t)i);
            cr_assert(is_needed(strings, n_strings, s.held, s.n_held));
        }
    }
    cr_assert_eq(ended, expected_match >= 0);
    cr_assert_eq(stop_flush(&s, &out), 0);
    cr_assert_eq(s.matched, expected_match);
    cr_assert_eq(out.len, expected);
    cr_assert(expected == 0 || memcmp(out.data, text, expected) == 0);
    stop_deinit(&s);
    buf_free(&out);
}

Test(stop, equals_the_definition) {
    uint64_t seed = 1;
    for (int i = 0; i < 20000; i++) check_random(&seed);
}

Test(stop, holds_back_no_more_than_a_beginning) {
    struct stop s;
    struct buf out = {0};
    begin(&s, (const char *[]){"</s>", "User:"}, 2);
    cr_assert_eq(stop_push(&s, "Hello <", 7, &out), 0);
    cr_expect_str_eq(out.data, "Hello ");
    cr_assert_eq(stop_push(&s, "b> Us", 5, &out), 0);
    cr_expect_str_eq(out.data, "Hello <b> ");
    cr_assert_eq(stop_push(&s, "er: x", 5, &out), 1);
    cr_expect_str_eq(out.data, "Hello <b> ");
    cr_expect_eq(s.matched, 1);
    cr_expect_eq(stop_push(&s, "more", 4, &out), 1);
    cr_assert_eq(stop_flush(&s, &out), 0);
    cr_expect_str_eq(out.data, "Hello <b> ");
    stop_deinit(&s);
    stop_deinit(&s);
    buf_free(&out);
}

Test(stop, keeps_characters_whole) {
    struct stop s;
    struct buf out = {0};
    begin(&s, (const char *[]){"\xc3\xa9\xc3\xa9", "\xe4\xb8\xad\xe6"}, 2);
    static const char *const pieces[] = {"\xc3\xa8", "\xc3\xa9", "\xe4\xb8\xad", "\xe4\xb8\xad",
                                         "x"};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        cr_assert_eq(stop_push(&s, pieces[i], strlen(pieces[i]), &out), 0);
        cr_expect(utf8_check(out.data, out.len));
    }
    cr_expect_eq(out.len, 11);
    stop_deinit(&s);
    buf_free(&out);
}

Test(stop, refuses_what_is_over_the_limits) {
    struct stop s;
    struct error err;
    char big[STOP_MAX_BYTES + 1];
    memset(big, 'x', sizeof big);
    const char *strings[STOP_MAX + 1];
    size_t lengths[STOP_MAX + 1];
    for (int i = 0; i <= STOP_MAX; i++) {
        strings[i] = big;
        lengths[i] = STOP_MAX_BYTES;
    }
    cr_expect_eq(stop_init(&s, strings, lengths, STOP_MAX + 1, &err), -EINVAL);
    lengths[2] = STOP_MAX_BYTES + 1;
    cr_expect_eq(stop_init(&s, strings, lengths, STOP_MAX, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "stop"));
    lengths[2] = 0;
    cr_expect_eq(stop_init(&s, strings, lengths, STOP_MAX, &err), -EINVAL);
    lengths[2] = STOP_MAX_BYTES;
    cr_assert_eq(stop_init(&s, strings, lengths, STOP_MAX, &err), 0);
    struct buf out = {0};
    cr_expect_eq(stop_push(&s, big, STOP_MAX_BYTES - 1, &out), 0);
    cr_expect_eq(out.len, 0);
    cr_expect_eq(stop_push(&s, "y", 1, &out), 0);
    cr_expect_eq(out.len, STOP_MAX_BYTES);
    cr_expect_eq(stop_push(&s, big, STOP_MAX_BYTES, &out), 1);
    cr_expect_eq(out.len, STOP_MAX_BYTES);
    stop_deinit(&s);
    buf_free(&out);
}
