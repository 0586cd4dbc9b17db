#include "kernels/backend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/error.h"

int backend_open(struct backend **ret, const struct backend_options *options, struct error *err) {
    const char *name = options->name ? options->name : "auto";
    const char *level = options->level ? options->level : getenv("GPTQT_CPU");
    if (!level || !*level) level = "auto";
    if (strcmp(name, "auto") && strcmp(name, "cpu"))
        return error_set(err, -ENODEV, "no back end '%.32s' (there are auto, cpu)", name);
    return cpu_open(ret, level, options->n_threads, err);
}

void backend_close(struct backend *be) {
    if (be) be->ops->close(be);
}
