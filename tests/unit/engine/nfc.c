#include "engine/nfc.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"

Test(nfc, composes) {
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"", ""},
        {"plain \xc3\xa9", "plain \xc3\xa9"},
        {"e\xcc\x81", "\xc3\xa9"},
        {"\xe2\x84\xab", "\xc3\x85"},                             /* Angstrom sign */
        {"o\xcc\x82\xcc\xa3", "\xe1\xbb\x99"},                    /* marks out of order */
        {"\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"}, /* Hangul */
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"},             /* excluded */
        {"\xef\xac\x81", "\xef\xac\x81"},                         /* compatibility: stays */
        {"e\xff\xcc\x81", "e\xff\xcc\x81"},                       /* invalid byte between */
        {"e\xcc\x81\xffo\xcc\x82\xe2\x82", "\xc3\xa9\xff\xc3\xb4\xe2\x82"},
    };
    if (!nfc_available()) {
        struct buf out = {0};
        cr_expect_eq(nfc_append(&out, "a", 1), -ENOTSUP);
        cr_skip_test("built without NFC");
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buf out = {0};
        cr_assert_eq(nfc_append(&out, cases[i].text, strlen(cases[i].text)), 0);
        cr_expect_str_eq(out.data, cases[i].expected, "case %zu", i);
        buf_free(&out);
    }
}

Test(nfc, long_runs_of_marks_take_no_quadratic_time) {
    if (!nfc_available()) cr_skip_test("built without NFC");
    size_t n = 1 << 20;
    char *text = malloc(n);
    cr_assert_not_null(text);
    text[0] = text[1] = 'q';
    for (size_t i = 2; i < n; i += 2) memcpy(text + i, i % 4 ? "\xcc\x87" : "\xcc\xa3", 2);
    struct buf out = {0};
    cr_assert_eq(nfc_append(&out, text, n), 0);
    cr_assert_eq(out.len, n);
    cr_expect_eq(memcmp(out.data, "qq\xcc\xa3\xcc\xa3", 6), 0);
    cr_expect_eq(memcmp(out.data + n - 4, "\xcc\x87\xcc\x87", 4), 0);
    buf_free(&out);
    free(text);
}
