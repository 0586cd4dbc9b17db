#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.h"

extern "C" {
#include "kernels/outliers.h"
#include "kernels/sell.h"
}

static int send(struct gpu *gpu, const struct weight *w, const void *host, size_t bytes,
                struct error *err) {
    cudaError_t code = gpu_send(gpu, w->beside, host, bytes);
    return code == cudaSuccess ? 0 : gpu_error(gpu, code, err, "uploading a weight");
}

/* One piece of device memory for all that is beside a weight. */
static int own(struct gpu *gpu, struct weight *w, size_t bytes, struct error *err) {
    int rc = gpu_alloc(gpu, GPU_WEIGHTS, &w->beside, bytes, err);
    if (!rc) w->bytes += bytes;
    return rc;
}

static int new_outliers(struct gpu *gpu, struct weight *w, const struct outliers_view *v,
                        struct error *err) {
    size_t bytes = sell_bytes(v);
    struct sell *s = static_cast<struct sell *>(calloc(1, bytes));
    if (!s) return error_set(err, -ENOMEM, "no memory for outliers");
    sell_pack(s, v);
    int rc = own(gpu, w, bytes, err);
    if (!rc) rc = send(gpu, w, s, bytes, err);
    if (!rc) {
        const char *at = static_cast<const char *>(w->beside);
        w->outliers =
            outliers_matrix{reinterpret_cast<const uint32_t *>(at + offsetof(struct sell, starts)),
                            at + s->columns, reinterpret_cast<const uint16_t *>(at + s->values),
                            s->whole     ? SELL_WHOLE
                            : s->is_wide ? SELL_WIDE
                                         : SELL_NARROW};
    }
    free(s);
    return rc;
}

/* -- Rotations ------------------------------------------------------------------------------- */

static size_t words(const struct rotation *r) { return ((size_t)r->n + 31) / 32; }
static size_t basis_numbers(const struct rotation *r) {
    return r->n && r->order > 1 ? (size_t)r->order * (size_t)r->order : 0;
}
static size_t side_bytes(const struct rotation *r) {
    return (words(r) + basis_numbers(r)) * sizeof(uint32_t);
}

/* Signs, then the basis as floats, at `host`; where they lie on the device. */
static int make_side(struct rotate_matrix *ret, const struct rotation *r, char *host,
                     const char *device, struct error *err) {
    if (!r->n) return 0;
    struct rotation_plan plan;
    int rc = rotation_plan_init(&plan, r, err);
    if (rc) return rc;
    size_t n_basis = basis_numbers(r), signs = words(r) * sizeof(uint32_t);
    float *basis = reinterpret_cast<float *>(host + signs);
    memcpy(host, r->signs, signs);
    for (size_t i = 0; i < n_basis; i++) basis[i] = (float)plan.basis[i];
    *ret = rotate_matrix{r->n,
                         r->order,
                         plan.length,
                         (float)(1 / sqrt((double)plan.length)),
                         n_basis ? reinterpret_cast<const float *>(device + signs) : NULL,
                         reinterpret_cast<const uint32_t *>(device)};
    rotation_plan_free(&plan);
    return 0;
}

static int check_room(const struct gpu *gpu, const struct rotation *r, struct error *err) {
    if (rotate_shared(r->n) <= gpu->shared) return 0;
    return error_set(
        err, -ENOTSUP,
        "a rotation of %d numbers does not fit into a block's %zu KiB on this GPU: use "
        "the CPU",
        r->n, gpu->shared >> 10);
}

static int new_rotation(struct gpu *gpu, struct weight *w, const struct rotation_view *v,
                        struct error *err) {
    size_t first = side_bytes(&v->in), bytes = first + side_bytes(&v->out);
    int rc = check_room(gpu, &v->in, err);
    if (!rc) rc = check_room(gpu, &v->out, err);
    if (rc) return rc;
    char *host = static_cast<char *>(malloc(bytes));
    w->turn_signs = static_cast<uint32_t *>(malloc(words(&v->in) * sizeof(uint32_t)));
    if (!host || !w->turn_signs) rc = error_set(err, -ENOMEM, "no memory for a rotation");
    if (!rc) rc = own(gpu, w, bytes, err);
    const char *device = static_cast<const char *>(w->beside);
    if (!rc) rc = make_side(&w->in, &v->in, host, device, err);
    if (!rc) rc = make_side(&w->out, &v->out, host + first, device + first, err);
    if (!rc) rc = send(gpu, w, host, bytes, err);
    if (!rc) {
        memcpy(w->turn_signs, v->in.signs, words(&v->in) * sizeof(uint32_t));
        w->turns = v->in;
        w->turns.signs = w->turn_signs;
    }
    free(host);
    return rc;
}

int gpu_beside_new(struct gpu *gpu, struct weight *w, const struct weight_view *view,
                   struct error *err) {
    int rc = view->outliers ? new_outliers(gpu, w, view->outliers, err) : 0;
    return !rc && view->rotation ? new_rotation(gpu, w, view->rotation, err) : rc;
}
