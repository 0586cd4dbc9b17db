#include "server/text.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static void expect_escaped(const char *bytes, size_t n, const char *expected) {
    struct text t = {0};
    text_add_escaped(&t, bytes, n);
    text_add(&t, "", 0);
    cr_expect(!strcmp(t.data, expected), "'%s' is not '%s'", t.data, expected);
    text_deinit(&t);
}

#define ESCAPED(bytes, expected) expect_escaped(bytes, sizeof bytes - 1, expected)

Test(text, strings_are_escaped_for_json) {
    ESCAPED("", "");
    ESCAPED("plain", "plain");
    ESCAPED("a\"b\\c\n\r\t", "a\\\"b\\\\c\\n\\r\\t");
    ESCAPED("\0\x01\x1f\x7f", "\\u0000\\u0001\\u001f\\u007f");
    ESCAPED("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
}

Test(text, bytes_that_are_not_utf8_are_replaced) {
    ESCAPED("a\xff"
            "b",
            "a\xef\xbf\xbd"
            "b");
    ESCAPED("\xc3", "\xef\xbf\xbd");                                 /* cut */
    ESCAPED("\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd");                 /* overlong */
    ESCAPED("\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* surrogate */
    ESCAPED("\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    ESCAPED("\xe2\x82"
            "a",
            "\xef\xbf\xbd\xef\xbf\xbd"
            "a");
}

Test(text, formats_longer_than_its_line_arrive_whole) {
    struct text t = {0};
    char *long_string = malloc(5001);
    memset(long_string, 'x', 5000);
    long_string[5000] = 0;
    text_addf(&t, "<%s>", long_string);
    cr_expect(t.n == 5002 && t.data[0] == '<' && t.data[5001] == '>' && !t.data[5002]);
    free(long_string);
    text_deinit(&t);
}

Test(text, taking_leaves_it_empty) {
    struct text t = {0};
    size_t n = 9;
    char *data = text_take(&t, &n);
    cr_expect(data && n == 0 && *data == 0);
    free(data);
    text_adds(&t, "abc");
    data = text_take(&t, &n);
    cr_expect(n == 3 && !strcmp(data, "abc") && !t.data && !t.n);
    free(data);
}
