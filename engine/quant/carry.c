#include "engine/quant/carry.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "kernels/float16.h"

enum { CHUNK = 1 << 20 /* elements widened at a time, about */ };

static enum safetensors_type type_of(enum source_kind kind) {
    if (kind == SOURCE_F32) return SAFETENSORS_F32;
    return kind == SOURCE_BF16 ? SAFETENSORS_BF16 : SAFETENSORS_F16;
}

/* dst: n elements of type. */
static int narrow(void *dst, enum safetensors_type type, const float *src, size_t n,
                  struct error *err) {
    if (type == SAFETENSORS_F32) {
        memcpy(dst, src, n * sizeof *src);
        return 0;
    }
    uint16_t *half = dst;
    for (size_t i = 0; i < n; i++) {
        if (type == SAFETENSORS_F16 && fabsf(src[i]) > 65504.0f)
            return error_set(err, -ERANGE, "value %g is beyond fp16", (double)src[i]);
        half[i] = type == SAFETENSORS_F16 ? f32_to_f16(src[i]) : f32_to_bf16(src[i]);
    }
    return 0;
}

/* Reads a tensor that cannot be used in place, by rows. */
static int convert(void **ret, const struct source *src, const struct source_tensor *t,
                   enum safetensors_type type, struct error *err) {
    size_t size = safetensors_type_size(type), cols = (size_t)t->cols;
    int64_t step = t->cols < CHUNK ? CHUNK / t->cols : 1;
    if (step > t->rows) step = t->rows;
    char *bytes = malloc((size_t)t->rows * cols * size);
    float *wide = malloc((size_t)step * cols * sizeof *wide);
    int r = bytes && wide ? 0 : error_set(err, -ENOMEM, "out of memory");
    for (int64_t row = 0; r == 0 && row < t->rows; row += step) {
        int64_t n = t->rows - row < step ? t->rows - row : step;
        r = source_read_rows(src, t, row, n, wide, err);
        if (r == 0)
            r = narrow(bytes + (size_t)row * cols * size, type, wide, (size_t)n * cols, err);
    }
    free(wide);
    if (r < 0)
        free(bytes);
    else
        *ret = bytes;
    return r;
}

static int carry(struct checkpoint_writer *w, const struct source *src,
                 const struct source_tensor *t, struct error *err) {
    enum safetensors_type type = type_of(t->kind);
    struct safetensors_tensor out = {.name = t->name, .type = type, .n_dims = t->n_dims};
    void *made = NULL;
    int r = 0;
    memcpy(out.shape, t->shape, sizeof out.shape);
    out.n_bytes = (uint64_t)t->rows * (uint64_t)t->cols * safetensors_type_size(type);
    out.data = t->data;
    if (!t->data) {
        r = convert(&made, src, t, type, err);
        out.data = made;
    }
    if (r == 0) r = checkpoint_writer_add(w, &out, err);
    free(made);
    source_release(src, t);
    return r;
}

int carry_tensors(struct checkpoint_writer *w, const struct source *src,
                  bool (*skip)(void *arg, const char *name), void *arg, struct error *err) {
    for (size_t i = 0; i < source_count(src); i++) {
        const struct source_tensor *t = source_at(src, i);
        if (t->kind == SOURCE_OTHER || t->kind == SOURCE_CODED || t->kind == SOURCE_SIDE) continue;
        if (skip(arg, t->name) || checkpoint_writer_has(w, t->name)) continue;
        int r = carry(w, src, t, err);
        if (r < 0) return error_prefix(err, r, "tensor '%s'", t->name);
    }
    return 0;
}
