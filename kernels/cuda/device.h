/* device.h - the state of the GPU back end, shared by its parts.
 *
 * Owns      device memory of everything made through it, one stream.
 * Borrows   nothing after a call.
 * Thread    one, as backend.h says.
 * Fails     the first failure of the device is kept; later operations do nothing, sync() and read()
 *           return it.
 * Cost      operations are queued; memory that a batch needs grows with the largest so far, and
 *           a rehearsal of the largest makes it grow ahead. */
#ifndef KERNELS_CUDA_DEVICE_H
#define KERNELS_CUDA_DEVICE_H

#include "kernels/cuda/attention.h"
#include "kernels/cuda/beside.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/pack_input.h"
#include "kernels/cuda/plain.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/queue.h"
#include "kernels/cuda/steps.h"

extern "C" {
#include "kernels/backend.h"
#include "kernels/error.h"
#include "kernels/rotation.h"
}

struct buffer {
    size_t n;
    float *data;
};

struct weight {
    enum weight_use use;
    int rows, cols;
    struct product_kind kind;
    struct plain_matrix plain; /* FORM_PLAIN, tables; data below belongs to it */
    void *data, *params, *levels, *scales;
    void *beside; /* device memory of what follows */
    struct outliers_matrix outliers;
    struct rotate_matrix in, out;
    struct rotation turns; /* in, to be compared with others' */
    uint32_t *turn_signs;  /* its signs, on the host */
    size_t bytes;
};

struct kv {
    struct kv_spec spec;
    struct kv_pool pool; /* of layer 0 */
    size_t layer_bytes;
};

/* Whose device memory is. */
enum gpu_use { GPU_WEIGHTS, GPU_KV, GPU_WORK, N_GPU_USES };

/* Device memory that grows; what was in it is lost then. */
struct room {
    void *data;
    size_t bytes;
};

/* What a model asks for again and again, kept on the device and found by its contents. */
struct constant {
    void *host, *data;
    size_t bytes;
};
enum { N_CONSTANTS = 16, N_ANGLES = 4 };

struct angles {
    const void *inv_freq; /* on the device; NULL: not of this batch */
    int n_freq;
    float scale;
    struct room room;
};

/* An input that is packed already: of whoever ran last. */
struct ready_input {
    const float *x; /* NULL: none */
    struct packed_input packed[N_PACK_ORDERS];
    bool done[N_PACK_ORDERS];
    int width; /* of PACK_OWNED: tokens of a block of warp groups, 0: for the others */
};

/* Pinned memory that weights pass through: one half is filled from the mapping, which may have to be
 * read from disk, while the other is on its way. */
struct staging_half {
    void *data;
    cudaEvent_t sent; /* when it may be filled again */
};
struct staging {
    struct staging_half halves[2];
    int turn;
    bool asked;
};

struct gpu {
    struct backend base;
    cudaStream_t stream;
    int device;
    int processors;
    size_t shared; /* the most that a block may ask for */
    size_t room;   /* shared memory of a multiprocessor */
    bool wide;     /* has the instructions of hopper.h */
    int rc;
    struct error failure;
    size_t used[N_GPU_USES]; /* bytes */

    int n_tokens, n_rows, longest; /* longest: the largest position + 1 */
    struct batch_tables batch;
    const int32_t *tokens;
    struct room batch_room, rows_room, pieces, ids;
    struct room ranks[2], weighed, temperatures;
    struct room columns[N_PACK_ORDERS], groups, sums, unscale[N_PACK_ORDERS];
    struct room turned; /* an input between rotations */
    struct room aside;  /* products that are not at their end yet */
    struct constant constants[N_CONSTANTS];
    int next_constant;
    struct angles angles[N_ANGLES];
    int next_angles;
    struct ready_input ready;
    struct queue queue;
    struct staging staging;
};

static inline struct gpu *gpu_of(struct backend *be) { return reinterpret_cast<struct gpu *>(be); }

/* A back end of one device, which is the current one then. */
int gpu_open_device(struct backend **ret, int device, struct error *err);

/* Keeps the first failure; true when there is none. */
bool gpu_good(struct gpu *gpu, cudaError_t code, const char *what);
/* -ENOMEM with the table of who uses what, or -EIO. */
int gpu_error(struct gpu *gpu, cudaError_t code, struct error *err, const char *what);

/* Device memory of exactly these bytes; 0 bytes give NULL. */
int gpu_alloc(struct gpu *gpu, enum gpu_use use, void **ret, size_t bytes, struct error *err);
/* Waits for what uses it; NULL is allowed. */
void gpu_release(struct gpu *gpu, enum gpu_use use, void *data, size_t bytes);
/* False after a failure, which is kept. */
bool gpu_grow(struct gpu *gpu, struct room *room, size_t bytes);
/* The device's copy of host memory; NULL after a failure. */
const void *gpu_constant(struct gpu *gpu, const void *host, size_t bytes);
void gpu_free_rooms(struct gpu *gpu);
/* Copies to the device; host may change when it returns. */
cudaError_t gpu_send(struct gpu *gpu, void *dst, const void *host, size_t bytes);
void gpu_free_staging(struct gpu *gpu);
void gpu_memory(struct backend *be, struct backend_memory *ret);
void gpu_rehearse(struct backend *be, bool on);

int gpu_weight_new(struct backend *be, struct weight **ret, enum weight_use use,
                   const struct weight_view *view, struct error *err);
void gpu_weight_free(struct backend *be, struct weight *weight);
size_t gpu_weight_bytes(const struct weight *weight);
/* What lies beside a weight's codes, to the device. */
int gpu_beside_new(struct gpu *gpu, struct weight *w, const struct weight_view *view,
                   struct error *err);
/* The launches of a list's steps; n_rows or n_tokens as they are then. */
void gpu_linear(struct gpu *gpu, const struct linear_call *calls, int n_calls, const float *x);
/* Where the input of these calls is to be packed, into args; false when they do not all take one. */
bool linear_input(struct gpu *gpu, struct input_args *args, const struct linear_call *calls,
                  int n_calls);

int gpu_kv_new(struct backend *be, struct kv **ret, const struct kv_spec *spec, struct error *err);
void gpu_kv_free(struct backend *be, struct kv *kv);
void gpu_kv_store(struct gpu *gpu, const struct store_step *step);
void gpu_attention(struct gpu *gpu, const struct attention_step *step);
void gpu_rope(struct gpu *gpu, const struct rope_step *step);
void gpu_rope_store(struct gpu *gpu, const struct rope_step *q, const struct rope_step *k,
                    const struct store_step *store);

#endif
