#include "engine/fair.h"

#include <criterion/criterion.h>

Test(fair, counts_tokens_by_weight) {
    static struct fair f;
    fair_join(&f, 3, 0);
    fair_join(&f, 5, 4);
    fair_charge(&f, 3, 8);
    fair_charge(&f, 5, 8);
    cr_expect_float_eq(fair_counter(&f, 3), 8, 1e-9);
    cr_expect_float_eq(fair_counter(&f, 5), 2, 1e-9);
}

Test(fair, time_away_earns_no_credit) {
    static struct fair f;
    fair_join(&f, 1, 1);
    fair_join(&f, 2, 1);
    fair_charge(&f, 1, 5);
    fair_leave(&f, 1);
    fair_charge(&f, 2, 1000);
    fair_join(&f, 1, 1);
    cr_expect_float_eq(fair_counter(&f, 1), 1000, 1e-9);
    fair_join(&f, 7, 1);
    cr_expect_float_eq(fair_counter(&f, 7), 1000, 1e-9);
}

Test(fair, leaving_pays_no_debt) {
    static struct fair f;
    fair_join(&f, 1, 1);
    fair_join(&f, 2, 1);
    fair_charge(&f, 1, 500);
    fair_leave(&f, 1);
    fair_join(&f, 1, 1);
    cr_expect_float_eq(fair_counter(&f, 1), 500, 1e-9);
    /* Nor is it forgotten when nobody was there in between. */
    fair_leave(&f, 1);
    fair_leave(&f, 2);
    fair_join(&f, 9, 1);
    cr_expect_float_eq(fair_counter(&f, 9), fair_counter(&f, 2), 1e-9);
    fair_join(&f, 1, 1);
    cr_expect_float_eq(fair_counter(&f, 1), 500, 1e-9);
}

Test(fair, a_tenant_is_present_while_any_of_its_sequences_is) {
    static struct fair f;
    fair_join(&f, 1, 1);
    fair_join(&f, 1, 1);
    fair_join(&f, 2, 1);
    fair_charge(&f, 2, 100);
    fair_leave(&f, 1);
    fair_charge(&f, 1, 10);
    fair_join(&f, 1, 1);
    cr_expect_float_eq(fair_counter(&f, 1), 10, 1e-9);
}
