#include "kernels/backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/error.h"
#include "kernels/plugin.h"

static int open_cpu(struct backend **ret, const struct backend_options *options,
                    struct error *err) {
    const char *level = options->level ? options->level : getenv("GPTQT_CPU");
    if (!level || !*level) level = "auto";
    if (options->n_devices > 1)
        return error_set(err, -EINVAL,
                         "tensor-parallel: %d devices are asked for, and the CPU back end has one",
                         options->n_devices);
    return cpu_open(ret, level, options->n_threads, err);
}

/* A GPU that is there and fails for want of memory is no reason to fall back in silence: whoever
 * has one wants to know. Only -ENODEV is, unless several were asked for. */
static int open_best(struct backend **ret, const struct backend_options *options,
                     struct error *err) {
    struct error why;
    int r = plugin_open(ret, "cuda", options->n_devices, &why);
    if (r == 0) return 0;
    if (r != -ENODEV || options->n_devices > 1)
        return error_set(err, r, "back end cuda: %s", why.text);
    r = open_cpu(ret, options, err);
    if (r == 0) snprintf((*ret)->note, sizeof(*ret)->note, "no GPU is used: %.200s", why.text);
    return r;
}

int backend_open(struct backend **ret, const struct backend_options *options, struct error *err) {
    const char *name = options->name ? options->name : "auto";
    if (!strcmp(name, "cpu")) return open_cpu(ret, options, err);
    if (!strcmp(name, "auto")) return open_best(ret, options, err);
    if (strcmp(name, "cuda") && strcmp(name, "cuda-emu"))
        return error_set(err, -ENODEV, "no back end '%.32s' (there are auto, cpu, cuda, cuda-emu)",
                         name);
    int r = plugin_open(ret, name, options->n_devices, err);
    return r < 0 ? error_prefix(err, r, "back end %s", name) : 0;
}

void backend_close(struct backend *be) {
    if (be) be->ops->close(be);
}
