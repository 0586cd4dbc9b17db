#include "server/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

static int one(const char *line, size_t n, int (*each)(void *, json_t *, struct error *), void *arg,
               struct error *err) {
    json_error_t why;
    json_t *value = json_loadb(line, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!value) return error_set(err, -EINVAL, "no JSON: %s", why.text);
    int r = each(arg, value, err);
    json_decref(value);
    return r;
}

int lines_each(FILE *in, int (*each)(void *arg, json_t *value, struct error *err), void *arg,
               struct error *err) {
    char *line = NULL;
    size_t room = 0, number = 0;
    ssize_t n;
    int r = 0;
    while (r == 0 && (n = getline(&line, &room, in)) >= 0) {
        number++;
        if (n == 0 || line[0] == '\n') continue;
        r = one(line, (size_t)n, each, arg, err);
        if (r < 0) error_prefix(err, r, "line %zu", number);
        if (fflush(stdout) == EOF && r == 0) r = error_set(err, -EIO, "standard output is closed");
    }
    free(line);
    return r;
}
