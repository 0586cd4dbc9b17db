#include "kernels/plugin.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "kernels/cuda/plugin.h"
#include "kernels/error.h"

static const char *const beside[] = {"", "/../kernels/cuda", "/../lib/gptqt"};
enum { N_BESIDE = sizeof beside / sizeof *beside };

/* False when the path does not fit or nothing is there. */
static bool is_there(char *path, size_t size, const char *folder, const char *below,
                     const char *name) {
    int n = snprintf(path, size, "%s%s/libgptqt-%s.so", folder, below, name);
    return n > 0 && (size_t)n < size && access(path, F_OK) == 0;
}

static int find(char *path, size_t size, const char *name, struct error *err) {
    const char *named = getenv("GPTQT_PLUGIN_DIR");
    if (named && *named) {
        if (is_there(path, size, named, "", name)) return 0;
        return error_set(err, -ENODEV, "libgptqt-%s.so is not in GPTQT_PLUGIN_DIR, %.200s", name,
                         named);
    }
    char folder[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    folder[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(folder, '/');
    if (slash) *slash = '\0';
    for (int i = 0; slash && i < N_BESIDE; i++)
        if (is_there(path, size, folder, beside[i], name)) return 0;
    return error_set(err, -ENODEV, "libgptqt-%s.so is neither beside the program nor in lib/gptqt",
                     name);
}

int plugin_open(struct backend **ret, const char *name, int n_devices, struct error *err) {
    char path[PATH_MAX];
    int r = find(path, sizeof path, name, err);
    if (r < 0) return r;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return error_set(err, -ENODEV, "%s", dlerror());
    gpu_plugin_get *get = NULL;
    *(void **)&get = dlsym(library, GPU_PLUGIN_SYMBOL);
    const struct gpu_plugin *plugin = get ? get() : NULL;
    if (!plugin || plugin->version != GPU_PLUGIN_VERSION ||
        plugin->n_ops != sizeof(struct backend_ops))
        return error_set(err, -ENODEV, "%s belongs to another build of gptqt", path);
    return plugin->open(ret, n_devices, err);
}
