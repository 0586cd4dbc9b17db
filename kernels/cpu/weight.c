#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/pool.h"
#include "kernels/outliers.h"
#include "kernels/pow2.h"
#include "kernels/rotation.h"
#include "kernels/sell.h"

static int check(const struct weight_view *v, enum weight_use use, struct error *err) {
    if (v->rows < 1 || v->cols < 1 || v->rows > BCQ_MAX_DIM || v->cols > BCQ_MAX_DIM)
        return error_set(err, -EINVAL, "a matrix of %d x %d is out of range", v->rows, v->cols);
    if (!v->is_bcq && v->type > DTYPE_BF16)
        return error_set(err, -EINVAL, "a dense matrix of type %d; f32, f16 and bf16 are known",
                         (int)v->type);
    if (weight_check_beside(v, err) < 0) return -EINVAL;
    if (v->act_bits && v->act_bits != 16 && v->act_bits != 8 && v->act_bits != 4)
        return error_set(err, -EINVAL, "activations of %d bits; 16, 8 and 4 are known",
                         v->act_bits);
    if (!v->is_bcq) return 0;
    bool whole = v->bcq.spec.kind == BCQ_WHOLE;
    if (use == WEIGHT_VECTOR || (use == WEIGHT_TABLE && !whole))
        return error_set(err, -EINVAL, "%s cannot be binary-coded",
                         use == WEIGHT_VECTOR ? "a vector" : "but as whole numbers a table");
    if (use == WEIGHT_TABLE && (v->outliers || v->rotation))
        return error_set(err, -EINVAL, "outliers or rotations of a table");
    if (v->bcq.spec.rows != v->rows || v->bcq.spec.cols != v->cols)
        return error_set(err, -EINVAL, "a binary-coded matrix of another size than its tensor");
    return bcq_check(&v->bcq.spec, err);
}

static void pack_rows(struct cpu *cpu, const void *arg, int thread, int b0, int b1) {
    const struct weight_view *v = ((const void *const *)arg)[0];
    const struct weight *w = ((const void *const *)arg)[1];
    (void)thread;
    if (w->is_bcq)
        w->bcq->pack(w->data, &v->bcq, b0, b1);
    else
        cpu->ops.dense.pack(w->data, v->type, v->data, v->rows, v->cols, b0, b1);
}

static int pack(struct cpu *cpu, struct weight *w, const struct weight_view *v) {
    const struct ops *ops = &cpu->ops;
    int unit = w->is_bcq ? w->bcq->row_block : ops->dense.row_block;
    w->bytes =
        w->is_bcq ? w->bcq->pack_bytes(&w->spec) : ops->dense.pack_bytes(w->type, w->rows, w->cols);
    if (w->is_bcq && cpu_grow(cpu, &cpu->act, &cpu->act_bytes,
                              w->bcq->act_bytes(w->act_bits, w->cols, CPU_SLICE)))
        return -ENOMEM;
    w->data = memory_new(&cpu->memory, w->bytes);
    if (!w->data) return -ENOMEM;
    const void *arg[] = {v, w};
    cpu_for_rows(cpu, (w->rows + unit - 1) / unit, (size_t)unit * (size_t)w->cols, pack_rows, arg);
    return 0;
}

static int pack_outliers(struct cpu *cpu, struct weight *w, const struct outliers_view *v) {
    size_t bytes = sell_bytes(v);
    w->outliers = memory_new(&cpu->memory, bytes);
    if (!w->outliers) return -ENOMEM;
    sell_pack(w->outliers, v);
    w->bytes += bytes;
    return 0;
}

/* The block as it is; rows are expanded when they are looked up. */
static int copy_block(struct cpu *cpu, struct weight *w, const struct bcq_view *v) {
    const char *block = (const char *)v->planes - v->layout.planes;
    w->bytes = (size_t)v->layout.total;
    w->data = memory_new(&cpu->memory, w->bytes);
    if (!w->data) return -ENOMEM;
    memcpy((char *)w->data + v->layout.planes, block + v->layout.planes,
           w->bytes - v->layout.planes);
    bcq_format(&w->block, w->data, &v->spec);
    return 0;
}

static int copy(struct cpu *cpu, struct weight *w, const struct weight_view *v, bool as_fp32) {
    size_t n = (size_t)v->rows * (size_t)v->cols;
    if (w->is_bcq) return copy_block(cpu, w, &v->bcq);
    w->bytes = n * dtype_size(as_fp32 ? DTYPE_F32 : v->type);
    w->data = memory_new(&cpu->memory, w->bytes);
    if (!w->data) return -ENOMEM;
    if (as_fp32)
        cpu->ops.widen(w->data, v->type, v->data, n);
    else
        memcpy(w->data, v->data, w->bytes);
    return 0;
}

int cpu_weight_new(struct backend *be, struct weight **ret, enum weight_use use,
                   const struct weight_view *view, struct error *err) {
    struct cpu *cpu = (struct cpu *)be;
    int rc = check(view, use, err);
    if (rc) return rc;
    struct weight *w = calloc(1, sizeof *w);
    if (!w) return error_set(err, -ENOMEM, "no memory for a weight");
    w->is_bcq = view->is_bcq;
    w->type = view->type;
    if (w->is_bcq) w->spec = view->bcq.spec;
    w->act_bits = view->act_bits ? view->act_bits : 16;
    w->bcq = &cpu->ops.bcq;
    if (w->is_bcq && w->spec.kind == BCQ_WHOLE) {
        w->bcq = &cpu->ops.whole;
        w->act_bits = 16;
    }
    if (w->is_bcq && w->act_bits < 16 && cpu->ops.shift.mul && pow2_ready(&view->bcq))
        w->bcq = &cpu->ops.shift;
    w->rows = view->rows;
    w->cols = view->cols;
    rc = use == WEIGHT_LINEAR ? pack(cpu, w, view) : copy(cpu, w, view, use == WEIGHT_VECTOR);
    if (rc == 0 && view->outliers) rc = pack_outliers(cpu, w, view->outliers);
    if (rc == 0 && view->rotation) rc = cpu_rotation_new(cpu, &w->rotation, view->rotation);
    if (rc) {
        memory_free(&cpu->memory, w->data);
        memory_free(&cpu->memory, w->outliers);
        free(w);
        return error_set(err, rc, "no memory for a matrix of %d x %d", view->rows, view->cols);
    }
    *ret = w;
    return 0;
}

void cpu_weight_free(struct backend *be, struct weight *weight) {
    cpu_flush((struct cpu *)be);
    memory_free(&((struct cpu *)be)->memory, weight->data);
    memory_free(&((struct cpu *)be)->memory, weight->outliers);
    memory_free(&((struct cpu *)be)->memory, weight->rotation);
    free(weight);
}

size_t cpu_weight_bytes(const struct weight *weight) { return weight->bytes; }

struct embed_job {
    float *dst;
    const struct weight *table;
    const int32_t *ids; /* tokens or positions */
    int offset;
    float scale;
    bool accumulate;
};

static void embed_row(struct cpu *cpu, const struct embed_job *job, float *tmp, int row) {
    const struct weight *table = job->table;
    size_t size = table->is_bcq ? 0 : dtype_size(table->type), cols = (size_t)table->cols;
    size_t id = (size_t)(job->ids[row] + job->offset);
    const char *src = (const char *)table->data + id * cols * size;
    float *dst = job->dst + (size_t)row * cols;
    for (size_t at = 0; at < cols; at += CPU_TMP) {
        size_t n = cols - at < CPU_TMP ? cols - at : CPU_TMP;
        float *to = job->accumulate ? tmp : dst + at;
        if (table->is_bcq)
            bcq_whole_expand(&table->block, (int)id, (int)at, (int)n, to);
        else
            cpu->ops.widen(to, table->type, src + at * size, n);
        for (size_t i = 0; job->scale != 1 && i < n; i++) to[i] *= job->scale;
        if (job->accumulate) cpu->ops.add(dst + at, tmp, n);
    }
}

static void embed_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    for (int i = row0; i < row1; i++) embed_row(cpu, arg, cpu->tmp + (size_t)thread * CPU_TMP, i);
}

void cpu_embed(struct backend *be, struct buffer *dst, const struct weight *table, bool by_pos,
               int offset, float scale, bool accumulate) {
    struct cpu *cpu = (struct cpu *)be;
    const int32_t *ids = by_pos ? cpu->batch.positions : cpu->batch.tokens;
    struct embed_job job = {dst->data, table, ids, offset, scale, accumulate};
    cpu_for_rows(cpu, cpu->batch.n_tokens, (size_t)table->cols, embed_rows, &job);
}
