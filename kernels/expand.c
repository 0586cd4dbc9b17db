#include "kernels/expand.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/outliers.h"
#include "kernels/rotation.h"
#include "kernels/weights.h"

/* A rotation and the vectors it needs. */
struct turn {
    struct rotation_plan plan;
    double *x; /* (2, n) the vector, scratch */
};

static void turn_free(struct turn *t) {
    rotation_plan_free(&t->plan);
    free(t->x);
}

static int turn_init(struct turn *t, const struct rotation *r, struct error *err) {
    *t = (struct turn){0};
    int rc = rotation_plan_init(&t->plan, r, err);
    if (rc < 0) return rc;
    t->x = malloc(2 * (size_t)r->n * sizeof *t->x);
    if (t->x) return 0;
    turn_free(t);
    return error_set(err, -ENOMEM, "rotation: out of memory");
}

/* Every step-th float from x on, turned back. */
static void turn_back(struct turn *t, float *x, size_t step) {
    size_t n = (size_t)t->plan.r.n;
    for (size_t i = 0; i < n; i++) t->x[i] = (double)x[i * step];
    rotation_apply(&t->plan, t->x, t->x + n, true);
    for (size_t i = 0; i < n; i++) x[i * step] = (float)t->x[i];
}

static int turn_rows(const struct rotation *r, float *rows, int n_rows, struct error *err) {
    struct turn t;
    int rc = turn_init(&t, r, err);
    if (rc < 0) return rc;
    for (int i = 0; i < n_rows; i++) turn_back(&t, rows + (size_t)i * (size_t)r->n, 1);
    turn_free(&t);
    return 0;
}

static int turn_columns(const struct rotation *r, float *matrix, int cols, struct error *err) {
    struct turn t;
    int rc = turn_init(&t, r, err);
    if (rc < 0) return rc;
    for (int k = 0; k < cols; k++) turn_back(&t, matrix + k, (size_t)cols);
    turn_free(&t);
    return 0;
}

/* Outputs mix all rows. */
static int expand_whole(const struct weight_view *w, int row, int n_rows, float *out,
                        struct error *err) {
    int rows = w->bcq.spec.rows, cols = w->bcq.spec.cols;
    size_t n = (size_t)cols;
    float *all = malloc((size_t)rows * n * sizeof *all);
    if (!all) return error_set(err, -ENOMEM, "rotation: out of memory");
    for (int r = 0; r < rows; r++) bcq_expand_row(&w->bcq, r, all + (size_t)r * n);
    int rc = turn_columns(&w->rotation->out, all, cols, err);
    if (rc == 0) memcpy(out, all + (size_t)row * n, (size_t)n_rows * n * sizeof *out);
    free(all);
    return rc;
}

int weight_expand(const struct weight_view *w, int row, int n_rows, float *out, struct error *err) {
    size_t cols = (size_t)w->bcq.spec.cols;
    const struct rotation_view *v = w->rotation;
    int rc = 0;
    if (v && v->out.n) rc = expand_whole(w, row, n_rows, out, err);
    for (int r = 0; r < n_rows; r++) {
        if (!v || !v->out.n) bcq_expand_row(&w->bcq, row + r, out + (size_t)r * cols);
        if (w->outliers) outliers_add_row(w->outliers, row + r, out + (size_t)r * cols);
    }
    if (rc == 0 && v) rc = turn_rows(&v->in, out, n_rows, err);
    return rc;
}
