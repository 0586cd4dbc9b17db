#include "engine/utf8.h"

#include <criterion/criterion.h>
#include <string.h>

Test(utf8, reads_what_it_writes) {
    for (uint32_t code = 0; code <= 0x10ffff; code++) {
        if (code >= 0xd800 && code <= 0xdfff) continue;
        char text[UTF8_MAX];
        int n = utf8_put(text, code);
        struct utf8_char c = utf8_next(text, (size_t)n), last = utf8_last(text, (size_t)n);
        cr_assert(c.ok && c.len == n && c.code == code, "U+%04X", (unsigned)code);
        cr_assert(last.ok && last.len == n && last.code == code, "U+%04X", (unsigned)code);
        for (int cut = 1; cut < n; cut++) {
            c = utf8_next(text, (size_t)cut);
            cr_assert(!c.ok && c.open && c.len == cut, "U+%04X cut to %d", (unsigned)code, cut);
        }
    }
}

Test(utf8, finds_maximal_invalid_parts) {
    static const struct {
        const char *text;
        int len;
    } cases[] = {
        {"\x80", 1},          {"\xc0\x80", 1},     {"\xc1\xbf", 1},      {"\xe0\x80\x80", 1},
        {"\xe0\x9f\xbf", 1},  {"\xed\xa0\x80", 1}, {"\xf0\x80\x80", 1},  {"\xf0\x8f\xbf\xbf", 1},
        {"\xf4\x90\x80", 1},  {"\xf5\x80", 1},     {"\xff", 1},          {"\xc3(", 1},
        {"\xe2\x82(", 2},     {"\xe2(\xac", 1},    {"\xf0\x9f\x98(", 3}, {"\xf0\x9f(", 2},
        {"\xf1\x80\x80z", 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct utf8_char c = utf8_next(cases[i].text, strlen(cases[i].text));
        cr_expect(!c.ok && !c.open && c.len == cases[i].len, "case %zu: %d", i, c.len);
        cr_expect_not(utf8_check(cases[i].text, strlen(cases[i].text)));
    }
    cr_expect(utf8_check("h\xc3\xa9 \xf0\x9f\x98\x80", 8));
    cr_expect(utf8_check("", 0));
}

Test(utf8, trims_what_python_trims) {
    const char *text = "\x1c\t \xc2\xa0\xe3\x80\x80 a \xc3\xa9\xe2\x80\xa8\r\n\x1f\xc2\x85";
    size_t n = strlen(text);
    utf8_trim(&text, &n);
    cr_expect(n == 4 && memcmp(text, "a \xc3\xa9", 4) == 0);
    text = " \n ";
    n = 3;
    utf8_trim(&text, &n);
    cr_expect_eq(n, 0);
    text = "\xff \xff";
    n = 3;
    utf8_trim(&text, &n);
    cr_expect_eq(n, 3);
    cr_expect_not(utf8_is_space(0x200b));
    cr_expect_not(utf8_is_space(0x180e));
}
