#include "engine/text_file.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/error.h"

static void expect(const char *bytes, size_t n, const char *want) {
    char path[] = "/tmp/gptqt-text-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, bytes, n), (ssize_t)n);
    close(fd);
    char *text;
    size_t len;
    struct error err;
    cr_assert_eq(text_file_read(&text, &len, path, &err), 0, "%s", err.text);
    cr_expect_eq(len, strlen(want));
    cr_expect_str_eq(text, want);
    free(text);
    unlink(path);
}

Test(text_file, line_ends_become_line_feeds) {
    expect("a\r\nb\n", 5, "a\nb\n");
    expect("a\rb\r", 4, "a\nb\n");
    expect("\r\r\n\n", 4, "\n\n\n");
    expect("plain", 5, "plain");
    expect("", 0, "");
}

Test(text_file, a_missing_file_is_named) {
    char *text;
    size_t len;
    struct error err;
    cr_expect_eq(text_file_read(&text, &len, "/nonexistent/text", &err), -ENOENT);
    cr_expect_not_null(strstr(err.text, "/nonexistent/text"));
}
