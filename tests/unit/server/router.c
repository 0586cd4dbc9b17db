#include "server/router.h"

#include <criterion/criterion.h>
#include <string.h>

Test(router, rows_are_found_by_method_and_path) {
    char allow[64];
    for (int i = 0; i < router_count(); i++) {
        const struct router_row *row = router_get(i);
        cr_expect(router_find(row->method, row->path, allow, sizeof allow) == i, "%s", row->path);
    }
    cr_expect(router_find("HEAD", "/health", allow, sizeof allow) >= 0);
}

Test(router, other_methods_and_paths_are_told_apart) {
    char allow[64];
    cr_expect(router_find("GET", "/v1/completions", allow, sizeof allow) == ROUTER_NO_METHOD);
    cr_expect(!strcmp(allow, "POST"));
    cr_expect(router_find("POST", "/health", allow, sizeof allow) == ROUTER_NO_METHOD);
    cr_expect(!strcmp(allow, "GET, HEAD"));
    cr_expect(router_find("GET", "/v1/completions/", allow, sizeof allow) == ROUTER_NO_PATH);
    cr_expect(router_find("GET", "", allow, sizeof allow) == ROUTER_NO_PATH);
}
