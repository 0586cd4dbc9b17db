#include "engine/model_backend.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/config.h"
#include "engine/source.h"
#include "kernels/error.h"

/* The first tensor that lies beside codes; NULL when there is none. */
static const char *side_part(const struct source *src) {
    for (size_t i = 0; i < source_count(src); i++)
        if (source_at(src, i)->kind == SOURCE_SIDE) return source_at(src, i)->name;
    return NULL;
}

/* Heads and columns of the wide part go to devices in equal shares. */
static int check_split(const struct model_config *c, int n, struct error *err) {
    const struct {
        const char *field;
        int value;
    } split[] = {{"num_attention_heads", c->n_heads},
                 {"num_key_value_heads", c->n_kv_heads},
                 {"intermediate_size", c->intermediate}};
    for (size_t i = 0; n > 1 && i < sizeof split / sizeof *split; i++)
        if (split[i].value % n)
            return error_set(err, -EINVAL, "tensor-parallel: %s, %d, does not divide by %d devices",
                             split[i].field, split[i].value, n);
    return 0;
}

int model_backend_open(struct backend **ret, const struct backend_options *options,
                       const struct source *src, struct error *err) {
    bool chosen = options->name && strcmp(options->name, "auto") != 0;
    const char *side = options->n_devices > 1 ? side_part(src) : NULL;
    int r = check_split(source_config(src), options->n_devices, err);
    if (r == 0) r = backend_open(ret, options, err);
    if (r < 0 || chosen || !side || !strcmp((*ret)->name, "cpu")) return r;
    struct backend_options cpu = *options;
    cpu.name = "cpu";
    backend_close(*ret);
    r = backend_open(ret, &cpu, err);
    if (r == 0)
        snprintf((*ret)->note, sizeof(*ret)->note,
                 "no GPU is used: tensor '%.100s' is not split over devices", side);
    return r;
}
