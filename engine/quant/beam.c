#include "engine/quant/beam.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "kernels/error.h"

enum { BLOCK = 32 /* columns between two gemms */ };

struct child {
    double loss;
    int parent, level;
};

/* Some rows at a time, `width` lanes each; a row's partial assignments are in its first `alive`
 * lanes by rising loss. */
struct beam {
    const struct gptq_factor *f;
    const struct gptq_levels *levels;
    const float *w;
    int row, n_rows; /* of this pass */
    int width, lanes;
    float *d;           /* (n, lanes) what was rounded away */
    uint8_t *rank;      /* (n, lanes) */
    float *exact;       /* (n, lanes) values of weights that stay unrounded; NULL without any */
    float *sum;         /* (BLOCK, lanes) feedback of the columns before the block */
    float *x;           /* (lanes) where the weights stand */
    double *total;      /* (lanes) */
    int *alive;         /* (rows of a pass) */
    int *parent;        /* (lanes) lane that each new one continues */
    int *origin;        /* (lanes) its lane when the block began */
    struct child *best; /* (width) */
    void *scratch;      /* (lanes) of 8 bytes */
};

static float level_of(const struct beam *b, int k, int row, int level) {
    size_t at = (size_t)b->levels->group_of[k] * (size_t)b->levels->n_levels + (size_t)level;
    return b->levels->values[at * GPTQ_LANES + (size_t)(b->row + row)];
}

static bool is_exact(const struct beam *b, int k, int row) {
    return b->exact && b->levels->exact[(size_t)k * GPTQ_LANES + (size_t)(b->row + row)];
}

static void permute_floats(struct beam *b, float *values, const int *from) {
    float *old = b->scratch;
    memcpy(old, values, (size_t)b->lanes * sizeof *old);
    for (int i = 0; i < b->lanes; i++) values[i] = old[from[i]];
}

static void permute_bytes(struct beam *b, uint8_t *values, const int *from) {
    uint8_t *old = b->scratch;
    memcpy(old, values, (size_t)b->lanes);
    for (int i = 0; i < b->lanes; i++) values[i] = old[from[i]];
}

/* Where the weights stand in column k after the feedback of all columns before. */
static void stand(struct beam *b, int first, int k) {
    const float *v = b->f->v + (size_t)k * (size_t)b->f->n;
    size_t lanes = (size_t)b->lanes;
    for (int i = 0; i < b->lanes; i++)
        b->x[i] = b->w[(size_t)k * GPTQ_LANES + (size_t)(b->row + i / b->width)];
    if (first > 0)
        for (size_t i = 0; i < lanes; i++) b->x[i] -= b->sum[(size_t)(k - first) * lanes + i];
    for (int j = first; j < k; j++) {
        const float *d = b->d + (size_t)j * lanes;
        for (size_t i = 0; i < lanes; i++) b->x[i] -= v[j] * d[i];
    }
}

/* Puts a child among the best, which stay sorted; the earlier one is first at a tie. */
static int insert(struct child *best, int n, int width, struct child child) {
    int at = n < width ? n : width - 1;
    if (n == width && !(child.loss < best[at].loss)) return n;
    for (; at > 0 && child.loss < best[at - 1].loss; at--) best[at] = best[at - 1];
    best[at] = child;
    return n < width ? n + 1 : n;
}

/* What is not rounded has one child, at no cost, ranked by what is next to it. */
static int choose_exact(struct beam *b, int k, int row) {
    int first = row * b->width;
    for (int c = 0; c < b->alive[row]; c++) {
        float x = b->x[first + c];
        int l = 0;
        while (l + 1 < b->levels->n_levels &&
               x > 0.5f * (level_of(b, k, row, l) + level_of(b, k, row, l + 1)))
            l++;
        b->best[c] = (struct child){b->total[first + c], first + c, l};
    }
    return b->alive[row];
}

/* The best children of one row's assignments in column k. Equal levels are one. */
static int choose(struct beam *b, int k, int row) {
    int n = 0, first = row * b->width;
    if (is_exact(b, k, row)) return choose_exact(b, k, row);
    for (int c = 0; c < b->alive[row]; c++) {
        double before = b->total[first + c];
        if (n == b->width && !(before < b->best[n - 1].loss)) break;
        for (int l = 0; l < b->levels->n_levels; l++) {
            float value = level_of(b, k, row, l);
            if (l > 0 && value == level_of(b, k, row, l - 1)) continue;
            float e = b->x[first + c] - value;
            struct child child = {before + (double)e * (double)e * b->f->pivot[k], first + c, l};
            n = insert(b->best, n, b->width, child);
        }
    }
    return n;
}

static void take(struct beam *b, int k, int row, int n) {
    int first = row * b->width;
    size_t at = (size_t)k * (size_t)b->lanes;
    for (int i = 0; i < b->width; i++) {
        int lane = first + i;
        b->parent[lane] = lane;
        if (i >= n) continue;
        const struct child *child = &b->best[i];
        b->parent[lane] = child->parent;
        b->total[lane] = child->loss;
        b->rank[at + (size_t)lane] = (uint8_t)child->level;
        float x = b->x[child->parent], value = level_of(b, k, row, child->level);
        b->d[at + (size_t)lane] = is_exact(b, k, row) ? 0.0f : x - value;
        if (b->exact) b->exact[at + (size_t)lane] = x;
    }
    b->alive[row] = n;
}

/* Moves what the block has found so far along with the lanes that go on; columns before it follow
 * once, at its end. */
static void follow(struct beam *b, int first, int k, int end) {
    int i = 0;
    while (i < b->lanes && b->parent[i] == i) i++;
    if (i == b->lanes) return;
    size_t lanes = (size_t)b->lanes;
    int *old = b->scratch;
    for (int j = first; j < k; j++) {
        permute_floats(b, b->d + (size_t)j * lanes, b->parent);
        permute_bytes(b, b->rank + (size_t)j * lanes, b->parent);
        if (b->exact) permute_floats(b, b->exact + (size_t)j * lanes, b->parent);
    }
    for (int j = k + 1; first > 0 && j < end; j++)
        permute_floats(b, b->sum + (size_t)(j - first) * lanes, b->parent);
    memcpy(old, b->origin, lanes * sizeof *old);
    for (size_t l = 0; l < lanes; l++) b->origin[l] = old[b->parent[l]];
}

static void run_block(struct beam *b, int first, int end) {
    int n = b->f->n;
    size_t lanes = (size_t)b->lanes;
    struct linalg_shape shape = {end - first, b->lanes, first, n, b->lanes, b->lanes};
    if (first > 0)
        linalg_gemm_f32(b->sum, b->f->v + (size_t)first * (size_t)n, b->d, &shape, 1.0f, 0.0f);
    for (int i = 0; i < b->lanes; i++) b->origin[i] = i;
    for (int k = first; k < end; k++) {
        stand(b, first, k);
        for (int i = 0; i < b->lanes; i++) b->parent[i] = i;
        for (int row = 0; row < b->n_rows; row++) take(b, k, row, choose(b, k, row));
        follow(b, first, k, end);
    }
    for (int j = 0; j < first; j++) {
        permute_floats(b, b->d + (size_t)j * lanes, b->origin);
        permute_bytes(b, b->rank + (size_t)j * lanes, b->origin);
        if (b->exact) permute_floats(b, b->exact + (size_t)j * lanes, b->origin);
    }
}

static void keep_better(const struct beam *b, float *q, uint8_t *rank, double *loss) {
    for (int row = 0; row < b->n_rows; row++) {
        int lane = row * b->width, out = b->row + row;
        if (!(b->total[lane] < loss[out])) continue;
        loss[out] = b->total[lane];
        for (int k = 0; k < b->f->n; k++) {
            size_t at = (size_t)k * (size_t)b->lanes + (size_t)lane;
            size_t to = (size_t)k * GPTQ_LANES + (size_t)out;
            rank[to] = b->rank[at];
            q[to] = is_exact(b, k, row) ? b->exact[at] : level_of(b, k, row, b->rank[at]);
        }
    }
}

static void run_pass(struct beam *b, float *q, uint8_t *rank, double *loss) {
    memset(b->d, 0, (size_t)b->f->n * (size_t)b->lanes * sizeof *b->d);
    memset(b->rank, 0, (size_t)b->f->n * (size_t)b->lanes);
    memset(b->total, 0, (size_t)b->lanes * sizeof *b->total);
    for (int row = 0; row < b->n_rows; row++) b->alive[row] = 1;
    for (int first = 0; first < b->f->n; first += BLOCK)
        run_block(b, first, b->f->n - first < BLOCK ? b->f->n : first + BLOCK);
    keep_better(b, q, rank, loss);
}

int beam_search(const struct gptq_factor *f, const struct gptq_levels *levels, const float *w,
                int n_rows, int width, float *q, uint8_t *rank, double *loss, struct error *err) {
    struct beam b = {.f = f, .levels = levels, .w = w, .width = width};
    int together = width < GPTQ_LANES ? GPTQ_LANES / width : 1, r = 0;
    b.lanes = together * width;
    size_t lanes = (size_t)b.lanes, cells = (size_t)f->n * lanes;
    b.d = malloc(cells * sizeof *b.d);
    b.rank = malloc(cells);
    if (levels->exact) b.exact = calloc(cells, sizeof *b.exact);
    b.sum = malloc(BLOCK * lanes * sizeof *b.sum);
    b.x = malloc(lanes * sizeof *b.x);
    b.total = malloc(lanes * sizeof *b.total);
    b.alive = malloc((size_t)together * sizeof *b.alive);
    b.parent = malloc(lanes * sizeof *b.parent);
    b.origin = malloc(lanes * sizeof *b.origin);
    b.best = malloc((size_t)width * sizeof *b.best);
    b.scratch = malloc(lanes * sizeof(double));
    if (!b.d || !b.rank || !b.sum || !b.x || !b.total || !b.alive || !b.parent || !b.origin ||
        !b.best || !b.scratch || (levels->exact && !b.exact))
        r = error_set(err, -ENOMEM, "beam search: out of memory");
    for (; r == 0 && b.row < n_rows; b.row += together) {
        b.n_rows = n_rows - b.row < together ? n_rows - b.row : together;
        run_pass(&b, q, rank, loss);
    }
    free(b.d);
    free(b.rank);
    free(b.exact);
    free(b.sum);
    free(b.x);
    free(b.total);
    free(b.alive);
    free(b.parent);
    free(b.origin);
    free(b.best);
    free(b.scratch);
    return r;
}
