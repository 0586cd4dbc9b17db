/* plugin.h - what a GPU plugin exports: one function, which returns this table.
 *
 * Owns      nothing.
 * Borrows   nothing.
 * Thread    any.
 * Fails     open(): -ENODEV with the reason when there is no device, -EINVAL when there are fewer than
 *           were asked for, -ENOMEM.
 * Cost      open() starts the device, tenths of a second.
 *
 * Host and plugin are built together: the version changes with struct backend, struct backend_ops
 * or anything that they take. */
#ifndef KERNELS_CUDA_PLUGIN_H
#define KERNELS_CUDA_PLUGIN_H

struct backend;
struct error;

enum { GPU_PLUGIN_VERSION = 7 };
#define GPU_PLUGIN_SYMBOL "gptqt_gpu_plugin"

struct gpu_plugin {
    unsigned version, n_ops; /* n_ops: bytes of struct backend_ops */
    int (*open)(struct backend **ret, int n_devices, struct error *err);
};
typedef const struct gpu_plugin *gpu_plugin_get(void);

#endif
