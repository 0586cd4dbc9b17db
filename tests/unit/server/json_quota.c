#include "server/json_quota.h"

#include <criterion/criterion.h>
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

Test(json_quota, bounds_each_document_alone) {
    static const char *const pieces[] = {"{}", "[]", "0", "\"\"", "1.5", "{\"a\":[1]}"};
    json_quota_install();
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char *small = make(pieces[i], 10), *large = make(pieces[i], 100000);
        json_error_t why;
        json_quota_begin(100000);
        cr_expect(!json_loads(large, 0, &why));
        cr_expect(json_quota_end(), "%s: %s", pieces[i], why.text);

        json_quota_begin(100000);
        json_t *root = json_loads(small, 0, &why);
        cr_expect(!json_quota_end() && root, "%s: %s", pieces[i], why.text);
        json_decref(root);

        root = json_loads(large, 0, &why); /* without a quota */
        cr_expect(root, "%s: %s", pieces[i], why.text);
        json_decref(root);
        free(small);
        free(large);
    }
}

/* A long string is read into a buffer that grows: what it gives back does not count. */
Test(json_quota, counts_what_is_held) {
    enum { N = 1 << 20 };
    char *text = malloc(N + 8);
    text[0] = '[';
    text[1] = '"';
    memset(text + 2, 'x', N);
    strcpy(text + 2 + N, "\"]");
    json_quota_install();
    json_quota_begin(5 * N);
    json_t *root = json_loads(text, 0, NULL);
    cr_expect(root && !json_quota_end());
    json_decref(root);
    free(text);
}
