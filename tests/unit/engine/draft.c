#include "engine/draft.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/random.h"

/* The definition, without tables. */
static int guess_naively(const int32_t *tokens, int n, int32_t *out, int most) {
    for (int length = DRAFT_LONGEST; length >= DRAFT_SHORTEST; length--)
        for (int end = n - 1; end >= length; end--) {
            if (memcmp(tokens + end - length, tokens + n - length,
                       (size_t)length * sizeof *tokens) != 0)
                continue;
            for (int i = 0; i < most; i++)
                out[i] = end + i < n ? tokens[end + i] : out[end + i - n];
            return most;
        }
    return 0;
}

Test(draft, continues_as_the_newest_longest_match_did) {
    const int32_t text[] = {1, 2, 3, 9, 5, 1, 2, 3, 7, 5, 2, 3, 8, 4, 1, 2, 3};
    struct draft d = {0};
    int32_t out[4];
    cr_assert_eq(draft_next(&d, text, 17, out, 4), 4);
    cr_expect_eq(memcmp(out, text + 8, sizeof out), 0, "three tokens at 5..7 beat two at 10..11");
    draft_free(&d);
}

Test(draft, a_cycle_goes_on) {
    const int32_t text[] = {4, 5, 4, 5, 4};
    struct draft d = {0};
    int32_t out[6], want[] = {5, 4, 5, 4, 5, 4};
    cr_assert_eq(draft_next(&d, text, 5, out, 6), 6);
    cr_expect_eq(memcmp(out, want, sizeof want), 0);
    draft_free(&d);
}

Test(draft, has_nothing_to_say_about_what_is_new) {
    const int32_t text[] = {1, 2, 3, 4, 5, 1};
    struct draft d = {0};
    int32_t out[2];
    for (int n = 1; n <= 6; n++) cr_expect_eq(draft_next(&d, text, n, out, 2), 0, "%d", n);
    draft_free(&d);
    cr_expect_eq(d.size, 0);
}

/* Runs that were pushed out of a table may be missed; what is found must be right, and with few
 * different runs nothing is missed. */
Test(draft, finds_what_a_search_finds_however_the_text_came) {
    uint64_t seed = 3;
    for (int round = 0; round < 50; round++) {
        enum { N = 1500 };
        int32_t text[N], out[8], want[8];
        struct draft d = {0};
        int letters = random_range(&seed, 2, 3), found = 0, missed = 0;
        for (int i = 0; i < N; i++) text[i] = random_range(&seed, 0, letters - 1);
        for (int n = 1; n < N; n += random_range(&seed, 1, 40)) {
            int most = random_range(&seed, 1, 8);
            int expected = guess_naively(text, n, want, most);
            int got = draft_next(&d, text, n, out, most);
            found += got > 0;
            missed += got != expected || memcmp(out, want, (size_t)got * sizeof *out) != 0;
        }
        cr_expect_gt(found, 20);
        cr_expect_leq(missed * 4, found, "%d of %d", missed, found);
        draft_free(&d);
    }
}
