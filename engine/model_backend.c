#include "engine/model_backend.h"

#include <errno.h>

#include "engine/config.h"
#include "engine/source.h"
#include "kernels/error.h"

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
    int r = check_split(source_config(src), options->n_devices, err);
    return r == 0 ? backend_open(ret, options, err) : r;
}
