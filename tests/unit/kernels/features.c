#include "kernels/cpu/features.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/ops.h"

Test(features, auto_is_all_that_there_is) {
    unsigned features = 99;
    cr_assert_eq(features_parse(&features, "auto", NULL), 0);
    cr_expect_eq(features, features_detect());
    cr_expect(!(features & FEATURE_AVX512) || features & FEATURE_AVX2);
    cr_expect(!(features & FEATURE_AMX) || features & FEATURE_AVX512);
}

Test(features, a_level_is_itself_or_refused) {
    const struct {
        const char *level;
        unsigned bits;
    } cases[] = {{"ref", 0},
                 {"avx2", FEATURE_AVX2},
                 {"avx512", FEATURE_AVX2 | FEATURE_AVX512},
                 {"amx", FEATURE_AVX2 | FEATURE_AVX512 | FEATURE_AMX},
                 {"neon", FEATURE_NEON}};
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        unsigned got = 99;
        struct error err;
        int rc = features_parse(&got, cases[i].level, &err);
        bool have = (features_detect() & cases[i].bits) == cases[i].bits;
        cr_expect_eq(rc, have ? 0 : -ENOTSUP);
        cr_expect_eq(got, have ? cases[i].bits : 99);
        if (!have) continue;
        struct ops ops;
        ops_init(&ops, got);
        cr_expect_str_eq(ops.level, cases[i].level);
    }
}

Test(features, an_unknown_level_names_the_known) {
    unsigned features = 99;
    struct error err;
    cr_expect_eq(features_parse(&features, "sse9", &err), -EINVAL);
    cr_expect_eq(features, 99);
    cr_expect(strstr(err.text, "sse9") && strstr(err.text, "avx2"));
    cr_expect_eq(features_parse(&features, "", &err), -EINVAL);
}
