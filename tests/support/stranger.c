/* A plugin of another build of the program. */
#include <stddef.h>

#include "kernels/cuda/plugin.h"

__attribute__((visibility("default"))) gpu_plugin_get gptqt_gpu_plugin;

const struct gpu_plugin *gptqt_gpu_plugin(void) {
    static const struct gpu_plugin plugin = {.version = GPU_PLUGIN_VERSION - 1};
    return &plugin;
}
