#include "engine/text_file.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/error.h"

typedef int reader(char **ret, size_t *ret_n, const char *path, struct error *err);

static void expect(reader *read_text, const char *bytes, size_t n, const char *want) {
    char path[] = "/tmp/gptqt-text-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, bytes, n), (ssize_t)n);
    close(fd);
    char *text;
    size_t len;
    struct error err;
    cr_assert_eq(read_text(&text, &len, path, &err), 0, "%s", err.text);
    cr_expect_eq(len, strlen(want));
    cr_expect_str_eq(text, want);
    free(text);
    unlink(path);
}

Test(text_file, line_ends_become_line_feeds) {
    expect(text_file_read, "a\r\nb\n", 5, "a\nb\n");
    expect(text_file_read, "a\rb\r", 4, "a\nb\n");
    expect(text_file_read, "\r\r\n\n", 4, "\n\n\n");
    expect(text_file_read, "plain", 5, "plain");
    expect(text_file_read, "", 0, "");
}

Test(text_file, bytes_stay) {
    expect(text_file_read_bytes, "a\r\nb\rc\n", 7, "a\r\nb\rc\n");
    expect(text_file_read_bytes, "", 0, "");
}

Test(text_file, a_missing_file_is_named) {
    char *text;
    size_t len;
    struct error err;
    cr_expect_eq(text_file_read(&text, &len, "/nonexistent/text", &err), -ENOENT);
    cr_expect_not_null(strstr(err.text, "/nonexistent/text"));
}
