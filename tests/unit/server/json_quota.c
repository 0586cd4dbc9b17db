#include "server/json_quota.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* A document of n values that jansson makes much of. */
static char *make(const char *piece, int n) {
    char *text = malloc((size_t)n * (strlen(piece) + 1) + 8), *at = stpcpy(text, "[");
    for (int i = 0; i < n; i++) at = stpcpy(at, i ? "," : ""), at = stpcpy(at, piece);
    strcpy(at, "]");
    return text;
}

static int load(const char *text, size_t most) {
    json_error_t why;
    json_t *root = NULL;
    int code = json_quota_load(&root, text, strlen(text), 0, most, &why);
    cr_expect((code == 0) == (root != NULL));
    json_quota_release(root);
    return code;
}

Test(json_quota, bounds_each_document_alone) {
    static const char *const pieces[] = {"{}", "[]", "0", "\"\"", "1.5", "{\"a\":[1]}"};
    json_quota_install();
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char *small = make(pieces[i], 10), *large = make(pieces[i], 100000);
        cr_expect(load(large, 100000) == -E2BIG, "%s", pieces[i]);
        cr_expect(load(small, 100000) == 0, "%s", pieces[i]);
        cr_expect(load("[", 100000) == -EBADMSG);
        json_t *root = json_loads(large, 0, NULL); /* without a quota */
        cr_expect(root, "%s", pieces[i]);
        json_decref(root);
        free(small);
        free(large);
    }
}

static char *make_string(size_t n) {
    char *text = malloc(n + 8);
    text[0] = '[';
    text[1] = '"';
    memset(text + 2, 'x', n);
    strcpy(text + 2 + n, "\"]");
    return text;
}

/* A long string is read into a buffer that grows: what it gives back does not count. */
Test(json_quota, counts_what_is_held) {
    enum { N = 1 << 20 };
    char *text = make_string(N);
    json_quota_install();
    cr_expect(load(text, 5 * N) == 0);
    cr_expect(load(text, N) == -E2BIG);
    free(text);
}

/* Where the buffer of a string cannot grow, jansson itself would read and write beyond it. */
Test(json_quota, may_run_out_anywhere) {
    char *text = make_string(40000);
    int refused = 0;
    json_quota_install();
    for (size_t most = 0; most < 300000; most += 97) refused += load(text, most) == -E2BIG;
    cr_expect(refused > 500, "%d", refused);
    cr_expect(load(text, 300000) == 0);
    free(text);
}
