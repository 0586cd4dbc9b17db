#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/pack_weight.h"

extern "C" {
#include "kernels/float16.h"
}

static int check(const struct weight_view *v, enum weight_use use, struct error *err) {
    if (v->rows < 1 || v->cols < 1 || v->rows > BCQ_MAX_DIM || v->cols > BCQ_MAX_DIM)
        return error_set(err, -EINVAL, "a matrix of %d x %d is out of range", v->rows, v->cols);
    if (weight_check_beside(v, err) < 0) return -EINVAL;
    if (!v->is_bcq) return 0;
    if (use != WEIGHT_LINEAR && (v->outliers || v->rotation))
        return error_set(err, -EINVAL, "outliers or rotations of a table");
    if (use == WEIGHT_VECTOR || (use == WEIGHT_TABLE && v->bcq.spec.kind != BCQ_WHOLE))
        return error_set(err, -EINVAL, "%s cannot be binary-coded",
                         use == WEIGHT_VECTOR ? "a vector" : "but as whole numbers a table");
    if (v->bcq.spec.rows != v->rows || v->bcq.spec.cols != v->cols)
        return error_set(err, -EINVAL, "a binary-coded matrix of another size than its tensor");
    return bcq_check(&v->bcq.spec, err);
}

/* Device memory that counts as the weight's. */
static int own(struct gpu *gpu, struct weight *w, void **ret, size_t bytes, struct error *err) {
    int rc = gpu_alloc(gpu, GPU_WEIGHTS, ret, bytes, err);
    if (!rc) w->bytes += bytes;
    return rc;
}

/* own(), filled from host memory. */
static int upload(struct gpu *gpu, struct weight *w, void **ret, const void *host, size_t bytes,
                  struct error *err) {
    int rc = own(gpu, w, ret, bytes, err);
    if (rc) return rc;
    cudaError_t code = gpu_send(gpu, *ret, host, bytes);
    return code == cudaSuccess ? 0 : gpu_error(gpu, code, err, "uploading a weight");
}

static int plain_type_of(enum dtype type) {
    return type == DTYPE_F32 ? PLAIN_F32 : type == DTYPE_F16 ? PLAIN_F16 : PLAIN_BF16;
}

static int make_dense(struct gpu *gpu, struct weight *w, const struct weight_view *v,
                      struct error *err) {
    size_t bytes = (size_t)v->rows * (size_t)v->cols * dtype_size(v->type);
    w->kind.form = FORM_PLAIN;
    w->plain.type = plain_type_of(v->type);
    w->plain.cols = v->cols;
    int rc = upload(gpu, w, &w->data, v->data, bytes, err);
    w->plain.data = w->data;
    return rc;
}

static void dense_row(const struct weight_view *v, int r, float *to) {
    size_t n = (size_t)v->cols, first = (size_t)r * n;
    const float *f = static_cast<const float *>(v->data);
    const uint16_t *h = static_cast<const uint16_t *>(v->data);
    for (size_t i = 0; i < n; i++)
        to[i] = v->type == DTYPE_F32   ? f[first + i]
                : v->type == DTYPE_F16 ? f16_to_f32(h[first + i])
                                       : bf16_to_f32(h[first + i]);
}

static int make_vector(struct gpu *gpu, struct weight *w, const struct weight_view *v,
                       struct error *err) {
    size_t n = (size_t)v->rows * (size_t)v->cols;
    float *wide = static_cast<float *>(malloc(n * sizeof *wide));
    if (!wide) return error_set(err, -ENOMEM, "no memory for a vector of %zu", n);
    for (int r = 0; r < v->rows; r++) dense_row(v, r, wide + (size_t)r * (size_t)v->cols);
    int rc = upload(gpu, w, &w->data, wide, n * sizeof *wide, err);
    free(wide);
    return rc;
}

static int make_halves(struct gpu *gpu, struct weight *w, const struct weight_view *v,
                       struct error *err) {
    size_t src_bytes = (size_t)v->rows * (size_t)v->cols * 2;
    size_t units = (size_t)tiles_of(v->rows) * (size_t)chunks_of(v->cols);
    void *src = NULL;
    w->kind.form = FORM_HALVES;
    int rc = own(gpu, w, &w->data, units * 32 * 32 * sizeof(uint32_t), err);
    if (!rc) rc = gpu_alloc(gpu, GPU_WORK, &src, src_bytes, err);
    if (rc) return rc;
    cudaError_t code = gpu_send(gpu, src, v->data, src_bytes);
    if (code == cudaSuccess)
        code = pack_halves(static_cast<uint32_t *>(w->data), static_cast<const uint16_t *>(src),
                           v->rows, v->cols, gpu->stream);
    gpu_release(gpu, GPU_WORK, src, src_bytes); /* waits */
    return code == cudaSuccess ? 0 : gpu_error(gpu, code, err, "packing a weight");
}

/* mma() steps whose inputs share their alphas; 0: groups do not fit them. */
static int steps_of(const struct bcq_spec *s, int n_groups) {
    for (int steps = STEPS; steps; steps /= 2)
        if (n_groups == 1 || s->group % (16 * steps) == 0) return steps;
    return 0;
}

static enum weight_form form_of(const struct bcq_spec *s, int n_groups) {
    if (!steps_of(s, n_groups)) return FORM_PLAIN;
    if (s->kind == BCQ_FREE) return FORM_PLANES;
    return s->scale_bits <= 4 ? FORM_COMPACT : FORM_PLAIN; /* q lies in a nibble */
}

/* Planes as they are and every group's parameters in fp32. */
static int make_coded_plain(struct gpu *gpu, struct weight *w, const struct bcq_view *v,
                            struct error *err) {
    const struct bcq_spec *s = &v->spec;
    size_t each = (size_t)s->bits + 1, groups = (size_t)v->layout.n_groups;
    size_t bytes = (size_t)s->rows * groups * each * sizeof(float);
    float *params = static_cast<float *>(malloc(bytes));
    if (!params) return error_set(err, -ENOMEM, "no memory for a weight's parameters");
    for (int r = 0; r < s->rows; r++)
        for (int g = 0; g < v->layout.n_groups; g++) {
            float *to = params + ((size_t)r * groups + (size_t)g) * each;
            bcq_group_params(v, r, g, to, to + s->bits);
        }
    int rc = upload(gpu, w, &w->params, params, bytes, err);
    free(params);
    if (!rc)
        rc = upload(gpu, w, &w->data, v->planes,
                    (size_t)s->rows * (size_t)s->bits * (size_t)v->layout.plane_words * 4, err);
    w->plain.data = w->data;
    w->plain.params = static_cast<const float *>(w->params);
    w->plain.type = PLAIN_CODED;
    w->plain.cols = s->cols;
    w->plain.bits = s->bits;
    w->plain.group = s->group;
    w->plain.n_groups = v->layout.n_groups;
    return rc;
}

/* The byte of each code: sum of +-d_i, biased by 64. */
static void level_bytes(uint32_t *to, const uint8_t *d, int bits) {
    uint8_t bytes[16];
    int n = bits == 4 ? 16 : 8;
    for (int code = 0; code < n; code++) {
        int v = 64;
        for (int i = 0; i < bits; i++) v += code >> i & 1 ? d[i] : -d[i];
        bytes[code] = (uint8_t)v;
    }
    memcpy(to, bytes, (size_t)n);
}

static int make_levels(struct gpu *gpu, struct weight *w, const struct bcq_view *v,
                       struct error *err) {
    const struct bcq_spec *s = &v->spec;
    bool shapes = s->kind == BCQ_COMPACT_GROUP;
    size_t words = s->bits == 4 ? 4 : 2;
    size_t n = shapes ? (size_t)s->n_shapes : (size_t)tiles_of(s->rows) * TILE_ROWS;
    size_t filled = shapes ? n : (size_t)s->rows;
    uint32_t *levels = static_cast<uint32_t *>(calloc(n * words, sizeof *levels));
    float *scales = static_cast<float *>(calloc((size_t)s->rows * 2, sizeof *scales));
    int rc = levels && scales ? 0 : error_set(err, -ENOMEM, "no memory for a weight's levels");
    for (size_t i = 0; !rc && i < filled; i++)
        level_bytes(levels + i * words, (shapes ? v->shape_table : v->shape) + i * (size_t)s->bits,
                    s->bits);
    for (size_t r = 0; !rc && r < (size_t)s->rows; r++) {
        scales[2 * r] = f16_to_f32(v->row_scale[2 * r]) * 0.5f;
        scales[2 * r + 1] = f16_to_f32(v->row_scale[2 * r + 1]) * 16; /* sums of x come / 16 */
    }
    if (!rc) rc = upload(gpu, w, &w->levels, levels, n * words * sizeof *levels, err);
    if (!rc) rc = upload(gpu, w, &w->scales, scales, (size_t)s->rows * 2 * sizeof *scales, err);
    free(levels);
    free(scales);
    return rc;
}

/* Where the sections of a block would lie in one copy of it. */
static struct coded_matrix coded_of(const struct bcq_view *v, const char *block) {
    const struct bcq_spec *s = &v->spec;
    const struct bcq_layout *l = &v->layout;
    struct coded_matrix m = {};
    m.planes = reinterpret_cast<const uint32_t *>(block + l->planes);
    m.q = reinterpret_cast<const uint8_t *>(block + l->q);
    m.p = reinterpret_cast<const uint8_t *>(block + l->p);
    m.shape = reinterpret_cast<const uint8_t *>(block + l->shape);
    m.alpha = reinterpret_cast<const uint16_t *>(block + l->alpha);
    m.beta = reinterpret_cast<const uint16_t *>(block + l->beta);
    m.rows = s->rows;
    m.cols = s->cols;
    m.bits = s->bits;
    m.group = s->group;
    m.n_groups = l->n_groups;
    m.scale_bits = s->scale_bits;
    m.bias_bits = s->bias_bits;
    m.shape_bits = l->shape_bits;
    m.q_stride = (int)l->q_stride;
    m.p_stride = (int)l->p_stride;
    m.idx_stride = (int)l->idx_stride;
    m.shapes = s->kind == BCQ_COMPACT_GROUP;
    return m;
}

static int pack_coded(struct gpu *gpu, struct weight *w, const struct bcq_view *v,
                      const char *block, struct error *err) {
    const struct bcq_spec *s = &v->spec;
    struct coded_matrix m = coded_of(v, block);
    size_t tiles = (size_t)tiles_of(s->rows), chunks = (size_t)chunks_of(s->cols);
    cudaError_t code;
    int rc;
    if (w->kind.form == FORM_COMPACT) {
        w->kind.shapes = m.shapes;
        size_t words =
            tiles * (size_t)pairs_of(s->cols) * 32 * (size_t)compact_words(s->bits, w->kind.shapes);
        rc = own(gpu, w, &w->data, words * 4, err);
        if (!rc) rc = make_levels(gpu, w, v, err);
        if (rc) return rc;
        code = pack_compact(static_cast<uint32_t *>(w->data), &m, gpu->stream);
    } else {
        w->kind.steps = steps_of(s, v->layout.n_groups);
        size_t params = tiles * chunks * (size_t)(STEPS / w->kind.steps) * TILE_ROWS *
                        (size_t)param_words(s->bits);
        rc = own(gpu, w, &w->data, tiles * chunks * 32 * (size_t)planes_words(s->bits) * 4, err);
        if (!rc) rc = own(gpu, w, &w->params, params * 4, err);
        if (rc) return rc;
        code = pack_planes(static_cast<uint32_t *>(w->data), static_cast<uint32_t *>(w->params), &m,
                           w->kind.steps, gpu->stream);
    }
    return code == cudaSuccess ? 0 : gpu_error(gpu, code, err, "packing a weight");
}

/* To where they would lie in one block. They follow each other in such, so one copy would bring all; but
 * scales and biases that were stored smaller lie apart, and those after them nearer to the planes. */
static cudaError_t send_sections(struct gpu *gpu, char *block, const struct bcq_view *v) {
    const struct bcq_layout *l = &v->layout;
    uint64_t end = l->q ? l->q : l->total;
    cudaError_t code = gpu_send(gpu, block + l->planes, v->planes, end - l->planes);
    if (l->q && code == cudaSuccess) code = gpu_send(gpu, block + l->q, v->q, l->shape - l->q);
    if (l->q && code == cudaSuccess)
        code = gpu_send(gpu, block + l->shape, v->shape, l->total - l->shape);
    return code;
}

static int make_coded(struct gpu *gpu, struct weight *w, const struct bcq_view *v,
                      struct error *err) {
    w->kind.bits = v->spec.bits;
    w->kind.form = form_of(&v->spec, v->layout.n_groups);
    if (w->kind.form == FORM_PLAIN) return make_coded_plain(gpu, w, v, err);
    void *raw = NULL;
    int rc = gpu_alloc(gpu, GPU_WORK, &raw, v->layout.total, err);
    if (rc) return rc;
    cudaError_t code = send_sections(gpu, static_cast<char *>(raw), v);
    rc = code == cudaSuccess ? pack_coded(gpu, w, v, static_cast<const char *>(raw), err)
                             : gpu_error(gpu, code, err, "uploading a weight");
    gpu_release(gpu, GPU_WORK, raw, v->layout.total); /* waits */
    return rc;
}

static void row_of(const struct weight_view *v, int r, float *to) {
    if (v->is_bcq)
        bcq_expand_row(&v->bcq, r, to);
    else
        dense_row(v, r, to);
}

/* ||difference|| / ||row||, infinite where a number is beyond fp16. */
static double round_row(uint16_t *to, const float *row, size_t n) {
    double lost = 0, all = 0;
    for (size_t k = 0; k < n; k++) {
        to[k] = f32_to_f16(row[k]);
        if ((to[k] & 0x7c00) == 0x7c00) return INFINITY;
        double d = (double)row[k] - (double)f16_to_f32(to[k]);
        lost += d * d;
        all += (double)row[k] * (double)row[k];
    }
    return all > 0 ? sqrt(lost / all) : 0;
}

/* The matrix in fp16; -ERANGE, and nothing made, when a row is further from it than `most`. */
static int make_rounded(struct gpu *gpu, struct weight *w, enum weight_use use,
                        const struct weight_view *v, double most, struct error *err) {
    size_t rows = (size_t)v->rows, cols = (size_t)v->cols;
    uint16_t *halves = static_cast<uint16_t *>(malloc(rows * cols * sizeof *halves));
    float *row = static_cast<float *>(malloc(cols * sizeof *row));
    int rc = halves && row ? 0 : error_set(err, -ENOMEM, "no memory to convert a matrix");
    for (size_t r = 0; !rc && r < rows; r++) {
        row_of(v, (int)r, row);
        if (!(round_row(halves + r * cols, row, cols) <= most))
            rc = error_set(err, -ERANGE, "row %zu has a weight beyond fp16: use the CPU", r);
    }
    if (!rc) {
        struct weight_view dense = {};
        dense.type = DTYPE_F16;
        dense.rows = v->rows;
        dense.cols = v->cols;
        dense.data = halves;
        rc = use == WEIGHT_LINEAR ? make_halves(gpu, w, &dense, err)
                                  : make_dense(gpu, w, &dense, err);
        cudaStreamSynchronize(gpu->stream); /* halves may go now */
    }
    free(row);
    free(halves);
    return rc;
}

/* Whole numbers have no kernel of their own here: they become fp16, which rounds a weight of 8 bits by at
 * most 1/4096 of itself. -ERANGE beyond fp16. */
static int make_whole(struct gpu *gpu, struct weight *w, enum weight_use use,
                      const struct weight_view *v, struct error *err) {
    return make_rounded(gpu, w, use, v, DBL_MAX, err);
}

/* Tensor cores take fp16, and nearly every bf16 matrix is the same numbers in it but for the smallest;
 * others stay as they are, with ordinary instructions. So does fp32: its inputs keep their bits then. */
static int make_linear(struct gpu *gpu, struct weight *w, const struct weight_view *v,
                       struct error *err) {
    const double most = 1e-5; /* what backend.h allows dense products */
    if (v->type == DTYPE_F16) return make_halves(gpu, w, v, err);
    int rc = -ERANGE;
    if (v->type == DTYPE_BF16) rc = make_rounded(gpu, w, WEIGHT_LINEAR, v, most, err);
    return rc == -ERANGE ? make_dense(gpu, w, v, err) : rc;
}

int gpu_weight_new(struct backend *be, struct weight **ret, enum weight_use use,
                   const struct weight_view *view, struct error *err) {
    struct gpu *gpu = gpu_of(be);
    int rc = check(view, use, err);
    if (rc) return rc;
    struct weight *w = static_cast<struct weight *>(calloc(1, sizeof *w));
    if (!w) return error_set(err, -ENOMEM, "no memory for a weight");
    w->use = use;
    w->rows = view->rows;
    w->cols = view->cols;
    if (view->is_bcq && view->bcq.spec.kind == BCQ_WHOLE)
        rc = make_whole(gpu, w, use, view, err);
    else if (view->is_bcq)
        rc = make_coded(gpu, w, &view->bcq, err);
    else if (use == WEIGHT_VECTOR)
        rc = make_vector(gpu, w, view, err);
    else if (use == WEIGHT_LINEAR)
        rc = make_linear(gpu, w, view, err);
    else
        rc = make_dense(gpu, w, view, err);
    if (!rc) rc = gpu_beside_new(gpu, w, view, err);
    if (!rc) {
        cudaError_t code = cudaStreamSynchronize(gpu->stream); /* the view may go now */
        if (code != cudaSuccess) rc = gpu_error(gpu, code, err, "packing a weight");
    }
    if (rc) {
        gpu_weight_free(be, w);
        return error_prefix(err, rc, "a matrix of %d x %d", view->rows, view->cols);
    }
    *ret = w;
    return 0;
}

void gpu_weight_free(struct backend *be, struct weight *w) {
    cudaFree(w->params);
    cudaFree(w->levels);
    cudaFree(w->scales);
    cudaFree(w->beside);
    gpu_release(gpu_of(be), GPU_WEIGHTS, w->data, w->bytes); /* bytes are those of all five */
    free(w->turn_signs);
    free(w);
}

size_t gpu_weight_bytes(const struct weight *w) { return w->bytes; }
