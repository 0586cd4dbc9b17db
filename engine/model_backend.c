#include "engine/model_backend.h"

#include <stdio.h>
#include <string.h>

#include "engine/source.h"

/* The first tensor that lies beside codes; NULL when there is none. */
static const char *side_part(const struct source *src) {
    for (size_t i = 0; i < source_count(src); i++)
        if (source_at(src, i)->kind == SOURCE_SIDE) return source_at(src, i)->name;
    return NULL;
}

int model_backend_open(struct backend **ret, const struct backend_options *options,
                       const struct source *src, struct error *err) {
    bool chosen = options->name && strcmp(options->name, "auto") != 0;
    const char *side = side_part(src);
    int r = backend_open(ret, options, err);
    if (r < 0 || chosen || !side || !strcmp((*ret)->name, "cpu")) return r;
    struct backend_options cpu = *options;
    cpu.name = "cpu";
    backend_close(*ret);
    r = backend_open(ret, &cpu, err);
    if (r == 0)
        snprintf((*ret)->note, sizeof(*ret)->note,
                 "no GPU is used: tensor '%.100s' has kernels on the CPU alone", side);
    return r;
}
