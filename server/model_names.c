#include "server/model_names.h"

#include <string.h>

const char *model_names_next(const char **list, size_t *ret_n) {
    const char *name = *list + strspn(*list, ", ");
    size_t n = strcspn(name, ",");
    *list = name + n;
    while (n && name[n - 1] == ' ') n--;
    *ret_n = n;
    return n ? name : NULL;
}

bool model_names_has(const char *list, const char *name) {
    size_t n, wanted = strlen(name);
    for (const char *at; (at = model_names_next(&list, &n));)
        if (n == wanted && !memcmp(at, name, n)) return true;
    return false;
}
