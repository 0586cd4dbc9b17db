#include "server/router.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static int find(const char *method, const char *path) {
    char allow[ROUTER_ALLOW];
    return router_find(method, path, allow, sizeof allow);
}

Test(router, rows_are_found_by_method_and_path) {
    for (int i = 0; i < router_count(); i++) {
        char path[256];
        const struct router_row *row = router_get(i);
        snprintf(path, sizeof path, "%s", row->path);
        if (strchr(path, '{')) strcpy(strchr(path, '{'), "some-thing");
        cr_expect(find(row->method, path) == i, "%s", row->path);
        const char *open = strchr(row->path, '{');
        cr_expect(!open || (open[-1] == '/' && strchr(open, '}')[1] == 0),
                  "%s: a parameter is the whole last part", row->path);
    }
    cr_expect(find("HEAD", "/health") >= 0);
}

Test(router, other_methods_and_paths_are_told_apart) {
    char allow[ROUTER_ALLOW];
    cr_expect(router_find("GET", "/v1/completions", allow, sizeof allow) == ROUTER_NO_METHOD);
    cr_expect(!strcmp(allow, "POST"));
    cr_expect(router_find("POST", "/health", allow, sizeof allow) == ROUTER_NO_METHOD);
    cr_expect(!strcmp(allow, "GET, HEAD"));
    cr_expect(find("GET", "/v1/completions/") == ROUTER_NO_PATH);
    cr_expect(find("GET", "") == ROUTER_NO_PATH);
}

Test(router, the_last_part_may_be_a_parameter) {
    static const struct {
        const char *path, *value;
    } cases[] = {
        {"/v1/models/a", "a"},
        {"/v1/models/org/name", "org/name"},
        {"/v1/models/org%2Fname", "org/name"},
        {"/v1/models/a%20b%c3%A9", "a b\xc3\xa9"},
        {"/v1/%6dodels/a", "a"},
    };
    char value[16];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int row = find("GET", cases[i].path);
        cr_assert(row >= 0, "%s", cases[i].path);
        cr_expect(router_parameter(row, cases[i].path, value, sizeof value));
        cr_expect(!strcmp(value, cases[i].value), "%s is not %s", value, cases[i].value);
    }
    int row = find("GET", "/v1/models/a");
    cr_expect(!router_parameter(row, "/v1/models/more-than-15-bytes", value, sizeof value));
    cr_expect(!router_parameter(find("GET", "/health"), "/health", value, sizeof value));
    cr_expect(!*value);
}

Test(router, broken_and_hidden_escapes_are_no_paths) {
    static const char *const paths[] = {
        "/v1/models/",    "/v1/models/a%", "/v1/models/a%4", "/v1/models/%zz", "/v1/models/a%00",
        "/v1/models/%00", "/v1%2Fmodels",  "/health%00",     "/health%",       "//health",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        cr_expect(find("GET", paths[i]) == ROUTER_NO_PATH, "%s", paths[i]);
}
