/* criterion.h - the part of Criterion's interface that the suites use, on plain fork().
 *
 * Owns      the list of tests (tests/support/plain/plain.c).
 * Borrows   nothing.
 * Thread    assertions on any thread; one that fails off the main thread ends the program.
 * Fails     a failed assertion ends its test, a failed expectation does not.
 * Cost      none.
 *
 * ThreadSanitizer cannot run under Criterion, whose sandbox moves each test into a process with
 * a shared arena; builds with -Db_sanitize=thread put this folder first instead. */
#ifndef TESTS_PLAIN_CRITERION_H
#define TESTS_PLAIN_CRITERION_H

/* Empty variadic arguments are Criterion's interface and no ISO C. */
#pragma GCC system_header

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct plain_test {
    const char *suite, *name;
    void (*body)(void);
    void (*init)(void);
    void (*fini)(void);
    struct plain_test *next;
};

struct plain_options {
    void (*init)(void);
    void (*fini)(void);
};

void plain_add(struct plain_test *test);
/* format: what the test says about it, may be empty. */
void plain_check(bool good, bool fatal, const char *what, const char *file, int line,
                 const char *format, ...);
_Noreturn void plain_skip(const char *format, ...);

#define Test(s, n, ...)                                                                            \
    static void s##_##n##_body(void);                                                              \
    static struct plain_test s##_##n##_test;                                                       \
    __attribute__((constructor)) static void s##_##n##_add(void) {                                 \
        struct plain_options o = {__VA_ARGS__};                                                    \
        s##_##n##_test = (struct plain_test){#s, #n, s##_##n##_body, o.init, o.fini, NULL};        \
        plain_add(&s##_##n##_test);                                                                \
    }                                                                                              \
    static void s##_##n##_body(void)

#define PLAIN(good, fatal, what, ...)                                                              \
    plain_check(good, fatal, what, __FILE__, __LINE__, "" __VA_ARGS__)
#define cr_assert(c, ...)           PLAIN((c) ? true : false, true, #c, __VA_ARGS__)
#define cr_expect(c, ...)           PLAIN((c) ? true : false, false, #c, __VA_ARGS__)
#define cr_assert_not(c, ...)       PLAIN((c) ? false : true, true, "not " #c, __VA_ARGS__)
#define cr_expect_not(c, ...)       PLAIN((c) ? false : true, false, "not " #c, __VA_ARGS__)
#define cr_assert_eq(a, b, ...)     PLAIN((a) == (b), true, #a " == " #b, __VA_ARGS__)
#define cr_expect_eq(a, b, ...)     PLAIN((a) == (b), false, #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...)    PLAIN((a) != (b), true, #a " != " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...)    PLAIN((a) != (b), false, #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...)     PLAIN((a) < (b), true, #a " < " #b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...)     PLAIN((a) < (b), false, #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...)    PLAIN((a) <= (b), true, #a " <= " #b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...)    PLAIN((a) <= (b), false, #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...)     PLAIN((a) > (b), true, #a " > " #b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...)     PLAIN((a) > (b), false, #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...)    PLAIN((a) >= (b), true, #a " >= " #b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...)    PLAIN((a) >= (b), false, #a " >= " #b, __VA_ARGS__)
#define cr_assert_null(p, ...)      PLAIN((p) == NULL, true, #p " == NULL", __VA_ARGS__)
#define cr_expect_null(p, ...)      PLAIN((p) == NULL, false, #p " == NULL", __VA_ARGS__)
#define cr_assert_not_null(p, ...)  PLAIN((p) != NULL, true, #p " != NULL", __VA_ARGS__)
#define cr_expect_not_null(p, ...)  PLAIN((p) != NULL, false, #p " != NULL", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) PLAIN(strcmp((a), (b)) == 0, true, #a " is " #b, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) PLAIN(strcmp((a), (b)) == 0, false, #a " is " #b, __VA_ARGS__)
#define cr_assert_str_empty(a, ...) PLAIN(*(a) == 0, true, #a " is empty", __VA_ARGS__)
#define cr_expect_str_empty(a, ...) PLAIN(*(a) == 0, false, #a " is empty", __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...)                                                             \
    PLAIN(memcmp((a), (b), (n)) == 0, true, #a " is " #b, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, n, ...)                                                             \
    PLAIN(memcmp((a), (b), (n)) == 0, false, #a " is " #b, __VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...)                                                           \
    PLAIN(fabs((a) - (b)) <= (e), true, #a " near " #b, __VA_ARGS__)
#define cr_expect_float_eq(a, b, e, ...)                                                           \
    PLAIN(fabs((a) - (b)) <= (e), false, #a " near " #b, __VA_ARGS__)
#define cr_skip_test(...) plain_skip("" __VA_ARGS__)

#endif
