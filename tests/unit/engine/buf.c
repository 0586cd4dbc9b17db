#include "engine/buf.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

Test(buf, collects_bytes) {
    struct buf b = {0};
    cr_assert_eq(buf_append(&b, "ab\0c", 4), 0);
    cr_assert_eq(buf_puts(&b, "de"), 0);
    cr_assert_eq(buf_printf(&b, "%d-%s", 42, "f"), 0);
    cr_expect_eq(b.len, 10);
    cr_expect_eq(memcmp(b.data, "ab\0cde42-f", 11), 0);
    buf_free(&b);
    cr_expect_null(b.data);
    cr_expect_eq(b.len, 0);
    buf_free(&b);
}

Test(buf, grows_past_any_size) {
    struct buf b = {0};
    for (int i = 0; i < 10000; i++) cr_assert_eq(buf_append(&b, "0123456789", 10), 0);
    cr_assert_eq(b.len, 100000);
    for (size_t i = 0; i < b.len; i++) cr_assert_eq(b.data[i], (char)('0' + i % 10));
    cr_expect_eq(b.data[b.len], '\0');
    cr_assert_eq(buf_printf(&b, "%5000d", 7), 0);
    cr_expect_eq(b.len, 105000);
    buf_free(&b);
}

Test(buf, keeps_what_it_has_when_memory_ends) {
    struct buf b = {0};
    cr_assert_eq(buf_puts(&b, "kept"), 0);
    cr_expect_eq(buf_reserve(&b, SIZE_MAX), -ENOMEM);
    cr_expect_eq(buf_reserve(&b, SIZE_MAX - 5), -ENOMEM);
    cr_expect_str_eq(b.data, "kept");
    buf_free(&b);
}

Test(buf, appending_nothing_makes_an_empty_string) {
    struct buf b = {0};
    cr_assert_eq(buf_append(&b, NULL, 0), 0);
    cr_expect_str_eq(b.data, "");
    buf_free(&b);
}
