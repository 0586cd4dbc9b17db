/* plugin.h - opens a back end that lives in a library of its own, found when it is asked for.
 *
 * Owns      nothing; a library that was loaded stays until the process ends.
 * Borrows   the name during the call.
 * Thread    any; the back end then belongs to the thread that opened it.
 * Fails     -ENODEV with the reason: no such library, one of another build, no device. What the
 *           device says beyond that is passed on.
 * Cost      loading a library and starting a device, tenths of a second.
 *
 * Looked for in the folder that GPTQT_PLUGIN_DIR names and nowhere else, or else beside the
 * program, in ../kernels/cuda (a build folder) and in ../lib/gptqt (an installation). A working
 * directory or a search path of the system never decides what runs. */
#ifndef KERNELS_PLUGIN_H
#define KERNELS_PLUGIN_H

struct backend;
struct error;

/* name: "cuda" or "cuda-emu"; n_devices as in backend_options. */
int plugin_open(struct backend **ret, const char *name, int n_devices, struct error *err);

#endif
