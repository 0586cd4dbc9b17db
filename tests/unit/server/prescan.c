#include "server/prescan.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernels/error.h"

static const struct prescan_limits limits = {.max_depth = 4, .max_containers = 6, .max_values = 9};

static int scan(struct prescan *found, char *text, size_t size, const char *json) {
    struct error err;
    snprintf(text, size, "%s", json);
    return prescan_json(found, text, strlen(text), &limits, &err);
}

Test(prescan, limits_hold_at_their_edges) {
    static const struct {
        const char *json;
        int code;
    } cases[] = {
        {"", 0},
        {"[[[[]]]]", 0},
        {"[[[[[]]]]]", -E2BIG},
        {"[[],[],[],[],[]]", 0},
        {"[[],[],[],[],[],[]]", -E2BIG},
        {"[1,2,3,4,5,6,7,8,9]", 0},
        {"[1,2,3,4,5,6,7,8,9,0]", -E2BIG},
        {"[\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",true,false]", -E2BIG},
        {"[null,null,true,false,-1,1.5,1e5,\"[[[[[[[\",\"\\\"[[[[[\"]", 0},
        {"\"unfinished \\", 0},
        {"\"unfinished", 0},
        {"]]]]]][[[[[[", -E2BIG},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct prescan found;
        char text[128];
        int r = scan(&found, text, sizeof text, cases[i].json);
        if (i == sizeof cases / sizeof *cases - 1) continue; /* no JSON: either will do */
        cr_expect(r == cases[i].code, "%s: %d", cases[i].json, r);
    }
}

Test(prescan, seeds_of_64_bits_are_kept) {
    static const struct {
        const char *json;
        int code;
        bool has_seed;
        uint64_t seed;
        const char *key;
    } cases[] = {
        {"{\"seed\":9223372036854775807}", 0, false, 0, "seed"},
        {"{\"seed\":9223372036854775808}", 0, true, 9223372036854775808u, "seed"},
        {"{\"seed\" : 18446744073709551615 }", 0, true, 18446744073709551615u, "seed"},
        {"{\"seed\":18446744073709551616}", -ERANGE, false, 0, "seed"},
        {"{\"seed\":-9223372036854775808}", 0, false, 0, "seed"},
        {"{\"seed\":-9223372036854775809}", -ERANGE, false, 0, "seed"},
        {"{\"n\":9223372036854775808}", -ERANGE, false, 0, "n"},
        {"{\"a\":{\"seed\":9223372036854775808}}", -ERANGE, false, 0, "a"},
        {"{\"a\":[\"seed\",9223372036854775808]}", -ERANGE, false, 0, "a"},
        {"{\"x\":\"seed\",\"y\":9223372036854775808.5}", 0, false, 0, "y"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct prescan found;
        char text[128];
        int r = scan(&found, text, sizeof text, cases[i].json);
        cr_expect(r == cases[i].code, "%s: %d", cases[i].json, r);
        cr_expect(found.has_seed == cases[i].has_seed && found.seed == cases[i].seed, "%s",
                  cases[i].json);
        cr_expect(!strcmp(found.key, cases[i].key), "%s: %s", cases[i].json, found.key);
        cr_expect(strlen(text) == strlen(cases[i].json));
        cr_expect(!found.has_seed || !strstr(text, "922") || !strstr(text, "184"));
    }
}
