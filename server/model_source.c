#include "server/model_source.h"

#include <errno.h>
#include <string.h>

#include "engine/source.h"
#include "kernels/error.h"
#include "server/builtin.h"

int model_source_open(struct source **ret, const char *model, struct error *err) {
    if (strcmp(model, "builtin")) return source_open(ret, model, err);
    struct source_file files[BUILTIN_MAX_FILES];
    int n = builtin_files(files);
    if (!n) return error_set(err, -ENOENT, "this program was built without an embedded model");
    return source_open_memory(ret, files, n, err);
}
