#include "engine/text_file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/map.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

static size_t copy_text(char *to, const char *from, size_t n, bool as_is) {
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        if (as_is || from[i] != '\r')
            to[len++] = from[i];
        else if (i + 1 == n || from[i + 1] != '\n')
            to[len++] = '\n';
    }
    to[len] = 0;
    return len;
}

static int read_text(char **ret, size_t *ret_n, const char *path, bool as_is, struct error *err) {
    struct map map;
    int r = map_open(&map, path, err);
    if (r < 0) return r;
    char *text = NULL;
    if (map.size > TOKENIZER_MAX_TEXT)
        r = error_set(err, -E2BIG, "%s: %zu bytes, the limit is %d", path, map.size,
                      TOKENIZER_MAX_TEXT);
    else if (!(text = malloc(map.size + 1)))
        r = error_set(err, -ENOMEM, "%s: out of memory", path);
    if (r == 0) {
        *ret_n = copy_text(text, (const char *)map.bytes, map.size, as_is);
        *ret = text;
    }
    map_close(&map);
    return r;
}

int text_file_read(char **ret, size_t *ret_n, const char *path, struct error *err) {
    return read_text(ret, ret_n, path, false, err);
}

int text_file_read_bytes(char **ret, size_t *ret_n, const char *path, struct error *err) {
    return read_text(ret, ret_n, path, true, err);
}
