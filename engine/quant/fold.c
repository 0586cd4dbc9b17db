#include "engine/quant/fold.h"

#include <stddef.h>

#include "engine/config.h"
#include "engine/train/params.h"

static bool norm_is_private(const struct model_config *c) {
    return !c->post_norm && !c->residual_after_norm;
}

/* A gated part multiplies by UP's output; after a plain layer only ReLU lets a factor through. */
static bool up_is_homogeneous(const struct model_config *c) {
    return c->activation == ACT_NONE || c->activation == ACT_RELU;
}

int fold_width(const struct model_config *c, enum calibrate_input input) {
    switch (input) {
    case INPUT_QKV:
    case INPUT_UP:
        return norm_is_private(c) ? c->hidden : 0;
    case INPUT_O:
        return c->n_kv_heads * c->head_dim;
    case INPUT_DOWN:
        return up_is_homogeneous(c) ? c->intermediate : 0;
    default:
        return 0;
    }
}

int fold_index(const struct model_config *c, enum calibrate_input input, int column) {
    if (input != INPUT_O) return column;
    int head = column / c->head_dim, shared = c->n_heads / c->n_kv_heads;
    return head / shared * c->head_dim + column % c->head_dim;
}

static void scale_columns(float *w, int rows, int cols, const struct model_config *c,
                          enum calibrate_input input, const float *s) {
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < cols; k++)
            w[(size_t)r * (size_t)cols + (size_t)k] *= s[fold_index(c, input, k)];
}

static void divide(float *x, const float *s, int n) {
    for (int i = 0; x && i < n; i++) x[i] /= s[i];
}

static void divide_rows(float *w, const float *s, int rows, int cols) {
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < cols; k++) w[(size_t)r * (size_t)cols + (size_t)k] /= s[r];
}

void fold_apply(struct params_block *b, const struct model_config *c, enum calibrate_input input,
                const float *s) {
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    switch (input) {
    case INPUT_QKV:
        scale_columns(b->linear[ROLE_Q], q, c->hidden, c, input, s);
        scale_columns(b->linear[ROLE_K], kv, c->hidden, c, input, s);
        scale_columns(b->linear[ROLE_V], kv, c->hidden, c, input, s);
        divide(b->norm_w[BLOCK_ATTN_NORM], s, c->hidden);
        divide(b->norm_b[BLOCK_ATTN_NORM], s, c->hidden);
        break;
    case INPUT_UP:
        if (b->linear[ROLE_GATE])
            scale_columns(b->linear[ROLE_GATE], c->intermediate, c->hidden, c, input, s);
        scale_columns(b->linear[ROLE_UP], c->intermediate, c->hidden, c, input, s);
        divide(b->norm_w[BLOCK_FFN_NORM], s, c->hidden);
        divide(b->norm_b[BLOCK_FFN_NORM], s, c->hidden);
        break;
    case INPUT_O:
        scale_columns(b->linear[ROLE_O], c->hidden, q, c, input, s);
        divide_rows(b->linear[ROLE_V], s, kv, c->hidden);
        divide(b->bias[ROLE_V], s, kv);
        break;
    default:
        scale_columns(b->linear[ROLE_DOWN], c->hidden, c->intermediate, c, input, s);
        divide_rows(b->linear[ROLE_UP], s, c->intermediate, c->hidden);
        divide(b->bias[ROLE_UP], s, c->intermediate);
        break;
    }
}

void fold_marks(const struct params_block *b, enum calibrate_input input, bool *vectors) {
    if (input == INPUT_QKV) vectors[VECTOR_ATTN_NORM] = true;
    if (input == INPUT_QKV && b->norm_b[BLOCK_ATTN_NORM]) vectors[VECTOR_ATTN_NORM_BIAS] = true;
    if (input == INPUT_UP) vectors[VECTOR_FFN_NORM] = true;
    if (input == INPUT_UP && b->norm_b[BLOCK_FFN_NORM]) vectors[VECTOR_FFN_NORM_BIAS] = true;
    if (input == INPUT_O && b->bias[ROLE_V]) vectors[VECTOR_BIAS + ROLE_V] = true;
    if (input == INPUT_DOWN && b->bias[ROLE_UP]) vectors[VECTOR_BIAS + ROLE_UP] = true;
}
