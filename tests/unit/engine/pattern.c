#include "engine/pattern.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "kernels/error.h"

/* All matches, joined with '|'. */
static void expect(const char *regex, bool literal, const char *text, const char *expected) {
    struct pattern *p = NULL;
    struct error err = {""};
    char found[256] = "";
    size_t n = strlen(text), from = 0, start, end, len = 0;
    cr_assert_eq(pattern_new(&p, regex, strlen(regex), literal, &err), 0, "%s: %s", regex,
                 err.text);
    struct pattern_work *work = pattern_work_new();
    while (from <= n && pattern_find(p, work, text, n, from, &start, &end) == 1) {
        if (len) found[len++] = '|';
        memcpy(found + len, text + start, end - start);
        len += end - start;
        from = end > start ? end : end + 1;
    }
    cr_expect_str_eq(found, expected, "%s in '%s': '%s'", regex, text, found);
    pattern_work_free(work);
    pattern_free(p);
}

Test(pattern, reads_classes_as_oniguruma_does) {
    expect("[^(\\s|[.,!?])]+", false, "ab(c,d e|f)", "ab|c|d|e|f");
    expect("[a-c[x-z]-]+", false, "ab-xy d", "ab-xy");
    expect("[x[-a]]+", false, "w-ax", "-ax");
    expect("[ab\\]]+", false, "a]b[", "a]b");
    expect("[\\u00e0-\\u00ff]+", false, "ab\xc3\xa9\xc3\xa8", "\xc3\xa9\xc3\xa8");
    expect("[a[b[c]]]+", false, "abcd", "abc");
}

Test(pattern, white_space_is_unicodes) {
    expect("\\s+", false, "a\xe2\x80\xa8 \xc2\x85\x62\xe1\xa0\x8e\xe2\x80\x8b",
           "\xe2\x80\xa8 \xc2\x85");
    expect("[^\\S\\n]+", false, "a \n\tb", " |\t");
}

Test(pattern, letters_and_digits_are_unicodes) {
    expect("\\p{L}+", false, "a\xc3\xa9\xe4\xb8\xad_1", "a\xc3\xa9\xe4\xb8\xad");
    expect("\\d+", false, "1\xd9\xa2x", "1\xd9\xa2");
    expect("(?i:'s)", false, "'S's'\xc5\xbf", "'S|'s|'\xc5\xbf");
}

Test(pattern, literals_stand_for_themselves) { expect("a.+[", true, "xa.+[a", "a.+["); }

Test(pattern, refuses_what_the_engines_read_differently) {
    static const struct {
        int code;
        const char *regex;
    } cases[] = {
        {-ENOTSUP, ""},
        {-ENOTSUP, "\\w+"},
        {-ENOTSUP, "\\b"},
        {-ENOTSUP, "^a"},
        {-ENOTSUP, "a$"},
        {-ENOTSUP, "\\p{Han}"},
        {-ENOTSUP, "\\pL"},
        {-ENOTSUP, "\\p{"},
        {-ENOTSUP, "(?m:a)"},
        {-ENOTSUP, "(?i)a"},
        {-ENOTSUP, "(?<n>a)"},
        {-ENOTSUP, "(*FAIL)"},
        {-ENOTSUP, "[[:alpha:]]"},
        {-ENOTSUP, "[a&&b]"},
        {-ENOTSUP, "[a[^b]]"},
        {-ENOTSUP, "[]a]"},
        {-ENOTSUP, "[abc"},
        {-ENOTSUP, "a\\"},
        {-ENOTSUP, "a{1,3}+"},
        {-ENOTSUP, "\\K"},
        {-ENOTSUP, "\\C"},
        {-ENOTSUP, "\\x41"},
        {-ENOTSUP, "\\u12"},
        {-ENOTSUP, "\\1"},
        {-EBADMSG, "(a"},
        {-EBADMSG, "a)"},
        {-EBADMSG, "*a"},
        {-EBADMSG, "a{99999}"},
        {-EBADMSG, "[z-a]"},
        {-EBADMSG, "\xff"},
        {-EBADMSG, "((((((((((a{999}){999}){999}){999}))))))))"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pattern *p = NULL;
        struct error err = {""};
        int r = pattern_new(&p, cases[i].regex, strlen(cases[i].regex), false, &err);
        cr_expect_eq(r, cases[i].code, "%s: %d %s", cases[i].regex, r, err.text);
        cr_expect_not_null(strstr(err.text, "regular expression"));
        cr_expect_null(p);
        pattern_free(p);
    }
}

Test(pattern, a_match_that_costs_too_much_is_given_up) {
    struct pattern *p = NULL;
    char text[64];
    size_t start, end;
    memset(text, 'a', sizeof text);
    cr_assert_eq(pattern_new(&p, "(?:a+a+)+b", 10, false, NULL), 0);
    struct pattern_work *work = pattern_work_new();
    int r = pattern_find(p, work, text, sizeof text, 0, &start, &end);
    cr_expect(r == -E2BIG || r == 0, "%d", r);
    pattern_work_free(work);
    pattern_free(p);
}
