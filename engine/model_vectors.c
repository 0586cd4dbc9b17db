#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model_weights.h"
#include "engine/source.h"
#include "kernels/error.h"

enum { NAME_SIZE = 192 };

static bool is_bias_of_norm(enum model_vector v) {
    return v == VECTOR_ATTN_NORM_BIAS || v == VECTOR_FFN_NORM_BIAS || v == VECTOR_FINAL_NORM_BIAS;
}

static const char *pattern_of(const struct model_weights *w, enum model_vector v) {
    if (v >= VECTOR_BIAS) return w->arch->linear[v - VECTOR_BIAS];
    if (is_bias_of_norm(v) && w->arch->norm == NORM_RMS) return NULL;
    if (v >= VECTOR_FINAL_NORM) return w->config->final_norm ? w->arch->final_norm : NULL;
    return v >= VECTOR_FFN_NORM ? w->arch->ffn_norm : w->arch->attn_norm;
}

int model_weights_vector_size(const struct model_weights *w, enum model_vector v) {
    int rows, cols;
    if (v >= VECTOR_BIAS)
        return model_weights_shape(w, (enum model_role)(v - VECTOR_BIAS), &rows, &cols) ? rows : 0;
    return pattern_of(w, v) ? w->config->hidden : 0;
}

void model_weights_vector_name(const struct model_weights *w, int layer, enum model_vector v,
                               char *name, size_t size) {
    bool bias = v >= VECTOR_BIAS || is_bias_of_norm(v);
    model_weights_tensor_name(w, pattern_of(w, v), layer, bias ? ".bias" : ".weight", name, size);
}

int model_weights_read_vector(struct model_weights *w, int layer, enum model_vector v, float *dst,
                              struct error *err) {
    char name[NAME_SIZE];
    struct source_tensor t;
    int size = model_weights_vector_size(w, v);
    if (!size) return error_set(err, -EINVAL, "model: a block has no such vector");
    model_weights_vector_name(w, layer, v, name, sizeof name);
    if (source_find(w->src, name, &t) < 0) {
        if (v >= VECTOR_BIAS && v <= VECTOR_BIAS + ROLE_V && w->arch->fused_qkv)
            return model_weights_read_fused_bias(w, layer, (enum model_role)(v - VECTOR_BIAS), dst,
                                                 err);
        return error_set(err, -ENOENT, "tensor '%s' is missing", name);
    }
    if (t.n_dims != 1 || t.shape[0] != (uint64_t)size)
        return error_set(err, -EBADMSG, "tensor '%s': the model needs a vector of %d", name, size);
    return source_read_rows(w->src, &t, 0, 1, dst, err);
}

static struct weight **place_of(struct model_weights *w, int layer, enum model_vector v) {
    struct model_layer *l = &w->layers[layer];
    if (v >= VECTOR_BIAS) return &l->bias[v - VECTOR_BIAS];
    struct model_norm *norm = v >= VECTOR_FINAL_NORM ? &w->final_norm
                              : v >= VECTOR_FFN_NORM ? &l->ffn_norm
                                                     : &l->attn_norm;
    return is_bias_of_norm(v) ? &norm->b : &norm->w;
}

int model_weights_replace_vector(struct model_weights *w, int layer, enum model_vector v,
                                 const float *values, struct error *err) {
    int size = model_weights_vector_size(w, v);
    if (!size) return error_set(err, -EINVAL, "model: a block has no such vector");
    struct weight *packed, **place = place_of(w, layer, v);
    enum weight_split split =
        v >= VECTOR_BIAS ? model_weights_split((enum model_role)(v - VECTOR_BIAS)) : SPLIT_NONE;
    struct weight_view view = {
        .type = DTYPE_F32, .rows = 1, .cols = size, .split = split, .data = values};
    int r = backend_weight_new(w->be, &packed, WEIGHT_VECTOR, &view, err);
    if (r < 0) return r;
    backend_weight_free(w->be, *place);
    *place = packed;
    return 0;
}
