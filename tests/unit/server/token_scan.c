#include "server/token_scan.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

Test(token_scan, takes_what_is_an_array_of_ids) {
    static const struct {
        const char *text;
        size_t length, n;
        int32_t first, last;
    } cases[] = {
        {"[1]", 3, 1, 1, 1},
        {"[0,10,2147483647],", 17, 3, 0, 2147483647},
        {"[ 1 ,\t2\r\n,3 ]  ", 13, 3, 1, 3},
        {"[7]]", 3, 1, 7, 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t *ids = NULL;
        size_t n = 0;
        cr_expect(token_scan(&ids, &n, cases[i].text, strlen(cases[i].text)) == cases[i].length,
                  "%s", cases[i].text);
        cr_assert(n == cases[i].n && ids, "%s: %zu", cases[i].text, n);
        cr_expect(ids[0] == cases[i].first && ids[n - 1] == cases[i].last);
        free(ids);
    }
}

Test(token_scan, leaves_all_else_alone) {
    static const char *const others[] = {
        "[]",           "[ ]",    "[",         "[1",
        "[1,",          "[1,]",   "[,1]",      "[-1]",
        "[1.0]",        "[1e3]",  "[01]",      "[\"1\"]",
        "[2147483648]", "[1 2]",  "[[1]]",     "[1,[2]]",
        "[null]",       "[true]", "[1,\"a\"]", "[99999999999999999999999]",
        "[1;2]",
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        int32_t *ids = (int32_t *)(void *)&ids;
        size_t n = 77;
        cr_expect(token_scan(&ids, &n, others[i], strlen(others[i])) == 0, "%s", others[i]);
        cr_expect(n == 77 && ids == (int32_t *)(void *)&ids, "written in spite of the failure");
    }
}
