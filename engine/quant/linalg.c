#include "engine/quant/linalg.h"

#include <cblas.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/parallel.h"
#include "kernels/error.h"

/* Tiles of 256: large enough for the library's own blocking, small enough to share out. */
enum { TILE = 256 };

/* LAPACK's Fortran entry: matrices by columns, so its "U" is the lower triangle of ours. */
extern void dposv_(const char *uplo, const int *n, const int *nrhs, double *a, const int *lda,
                   double *b, const int *ldb, int *info);
extern void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info);

void linalg_init(void) {
#ifdef GPTQT_OPENBLAS
    openblas_set_num_threads(1);
#endif
}

const char *linalg_better_core(void) {
#if defined(GPTQT_OPENBLAS) && defined(__x86_64__)
    static const char *const narrow[] = {"Prescott", "Core2", "Nehalem", "Sandybridge"};
    const char *core = openblas_get_corename();
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    for (size_t i = 0; i < sizeof narrow / sizeof *narrow; i++)
        if (!strcmp(core, narrow[i]) && __builtin_cpu_supports("avx2"))
            return wide ? "SkylakeX" : "Haswell";
#endif
    return NULL;
}

static int tiles(int n) { return (n + TILE - 1) / TILE; }

static int tile_size(int n, int tile) { return n - tile * TILE < TILE ? n - tile * TILE : TILE; }

/* Tile number of the lower triangle, counted by rows, as (row, col). */
static void triangle_tile(size_t index, int *ret_row, int *ret_col) {
    int row = 0;
    while (index > (size_t)row) index -= (size_t)++row;
    *ret_row = row;
    *ret_col = (int)index;
}

static size_t triangle_count(int n_tiles) { return (size_t)n_tiles * ((size_t)n_tiles + 1) / 2; }

struct gram {
    double *h;
    const float *y, *x; /* the same for a gram matrix */
    size_t n_rows;
    int m, n; /* widths of y and x */
    bool is_gram;
    atomic_int failed;
};

static void gram_tile(void *arg, size_t index) {
    struct gram *g = arg;
    int row, col;
    if (g->is_gram) {
        triangle_tile(index, &col, &row); /* the upper triangle: row <= col */
    } else {
        row = (int)index / tiles(g->n);
        col = (int)index % tiles(g->n);
    }
    int height = tile_size(g->m, row), width = tile_size(g->n, col);
    float *sum = malloc(sizeof(float) * TILE * TILE);
    if (!sum) {
        atomic_store(&g->failed, 1);
        return;
    }
    for (size_t first = 0; first < g->n_rows; first += LINALG_GRAM_ROWS) {
        size_t rows = g->n_rows - first;
        if (rows > LINALG_GRAM_ROWS) rows = LINALG_GRAM_ROWS;
        const float *y = g->y + first * (size_t)g->m, *x = g->x + first * (size_t)g->n;
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, height, width, (int)rows, 1.0f,
                    y + (size_t)row * TILE, g->m, x + (size_t)col * TILE, g->n, 0.0f, sum, TILE);
        for (int i = 0; i < height; i++) {
            double *h = g->h + ((size_t)row * TILE + (size_t)i) * (size_t)g->n + (size_t)col * TILE;
            for (int j = 0; j < width; j++) h[j] += (double)sum[i * TILE + j];
        }
    }
    free(sum);
}

static int add_products(struct gram *g, size_t n_tiles, int n_threads, struct error *err) {
    atomic_init(&g->failed, 0);
    parallel_for(n_threads, n_tiles, gram_tile, g);
    if (atomic_load(&g->failed)) return error_set(err, -ENOMEM, "gram: out of memory");
    return 0;
}

int linalg_gram_add(double *h, const float *x, size_t n_rows, int n, int n_threads,
                    struct error *err) {
    struct gram g = {.h = h, .y = x, .x = x, .n_rows = n_rows, .m = n, .n = n, .is_gram = true};
    return add_products(&g, triangle_count(tiles(n)), n_threads, err);
}

int linalg_cross_add(double *c, const float *y, int m, const float *x, int n, size_t n_rows,
                     int n_threads, struct error *err) {
    struct gram g = {.h = c, .y = y, .x = x, .n_rows = n_rows, .m = m, .n = n};
    return add_products(&g, (size_t)tiles(m) * (size_t)tiles(n), n_threads, err);
}

void linalg_symmetrize(double *h, int n, double factor) {
    for (size_t i = 0; i < (size_t)n; i++) {
        for (size_t j = i; j < (size_t)n; j++) {
            double v = h[i * (size_t)n + j] * factor;
            h[i * (size_t)n + j] = v;
            h[j * (size_t)n + i] = v;
        }
    }
}

struct factor {
    double *a; /* (n, n) the lower triangle becomes the Cholesky factor */
    double *u;
    int n, step; /* the tile column being eliminated */
};

static double *tile_at(double *a, int n, int row, int col) {
    return a + (size_t)row * TILE * (size_t)n + (size_t)col * TILE;
}

/* Tile row step + 1 + index of the panel: A := A L^-T with the factored diagonal tile L. */
static void solve_panel_tile(void *arg, size_t index) {
    struct factor *f = arg;
    int row = f->step + 1 + (int)index;
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit,
                tile_size(f->n, row), TILE, 1.0, tile_at(f->a, f->n, f->step, f->step), f->n,
                tile_at(f->a, f->n, row, f->step), f->n);
}

/* One tile of the trailing matrix: A_ij -= A_ik A_jk^T. */
static void update_tile(void *arg, size_t index) {
    struct factor *f = arg;
    int row, col;
    triangle_tile(index, &row, &col);
    row += f->step + 1;
    col += f->step + 1;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, tile_size(f->n, row), tile_size(f->n, col),
                TILE, -1.0, tile_at(f->a, f->n, row, f->step), f->n,
                tile_at(f->a, f->n, col, f->step), f->n, 1.0, tile_at(f->a, f->n, row, col), f->n);
}

static int cholesky(struct factor *f, int n_threads, struct error *err) {
    int n_tiles = tiles(f->n);
    for (f->step = 0; f->step < n_tiles; f->step++) {
        int size = tile_size(f->n, f->step), info = 0, below = n_tiles - f->step - 1;
        dpotrf_("U", &size, tile_at(f->a, f->n, f->step, f->step), &f->n, &info);
        if (info != 0) return error_set(err, -EDOM, "matrix is not positive definite");
        parallel_for(n_threads, (size_t)below, solve_panel_tile, f);
        parallel_for(n_threads, triangle_count(below), update_tile, f);
    }
    return 0;
}

/* Columns of the inverse of the lower factor, written reversed in both directions into u: the
 * factor belongs to the reversed matrix, so its reversal M is upper with h = M M^T, u = M^-1. */
static void invert_columns(void *arg, size_t index) {
    struct factor *f = arg;
    size_t n = (size_t)f->n, first = index * TILE, height = n - first;
    int width = tile_size(f->n, (int)index);
    double *x = calloc(height * (size_t)width, sizeof *x);
    if (!x) {
        /* Left at zero; a zero diagonal is what the caller looks for. */
        return;
    }
    for (int i = 0; i < width; i++) x[(size_t)i * (size_t)width + (size_t)i] = 1.0;
    cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, (int)height,
                width, 1.0, f->a + first * n + first, f->n, x, width);
    for (size_t i = 0; i < height; i++) {
        double *row = f->u + (n - 1 - first - i) * n;
        for (size_t j = 0; j < (size_t)width; j++)
            if (j <= i) row[n - 1 - first - j] = x[i * (size_t)width + j];
    }
    free(x);
}

static void reverse(double *a, size_t n) {
    for (size_t i = 0, j = n; i < j--; i++) {
        double v = a[i];
        a[i] = a[j];
        a[j] = v;
    }
}

int linalg_inverse_factor(double *u, double *h, int n, int n_threads, struct error *err) {
    size_t side = (size_t)n, count = side * side;
    struct factor f = {.a = h, .u = u, .n = n};
    reverse(h, count);
    int r = cholesky(&f, n_threads, err);
    if (r == 0) {
        memset(u, 0, count * sizeof *u);
        parallel_for(n_threads, (size_t)tiles(n), invert_columns, &f);
        for (size_t i = 0; i < side && r == 0; i++)
            if (!(u[i * side + i] > 0.0)) r = error_set(err, -ENOMEM, "factor: out of memory");
    }
    return r;
}

struct divide {
    double *a;
    const double *u;
    int m, n;
    atomic_int failed;
};

/* A tile of rows: a u^T u. */
static void divide_tile(void *arg, size_t index) {
    struct divide *d = arg;
    int rows = tile_size(d->m, (int)index);
    double *a = d->a + index * TILE * (size_t)d->n;
    double *half = malloc((size_t)rows * (size_t)d->n * sizeof *half);
    if (!half) {
        atomic_store(&d->failed, 1);
        return;
    }
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, d->n, d->n, 1.0, a, d->n, d->u, d->n,
                0.0, half, d->n);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, d->n, d->n, 1.0, half, d->n, d->u,
                d->n, 0.0, a, d->n);
    free(half);
}

int linalg_divide(double *a, int m, const double *h, int n, int n_threads, struct error *err) {
    size_t count = (size_t)n * (size_t)n;
    double *u = malloc(count * sizeof *u), *copy = malloc(count * sizeof *copy);
    struct divide d = {.a = a, .u = u, .m = m, .n = n};
    int r = u && copy ? 0 : error_set(err, -ENOMEM, "division: out of memory");
    atomic_init(&d.failed, 0);
    if (r == 0) {
        memcpy(copy, h, count * sizeof *copy);
        r = linalg_inverse_factor(u, copy, n, n_threads, err);
    }
    free(copy);
    if (r == 0) parallel_for(n_threads, (size_t)tiles(m), divide_tile, &d);
    if (r == 0 && atomic_load(&d.failed)) r = error_set(err, -ENOMEM, "division: out of memory");
    free(u);
    return r;
}

void linalg_gemm_f32(float *c, const float *a, const float *b, const struct linalg_shape *s,
                     float alpha, float beta) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, s->m, s->n, s->k, alpha, a, s->lda, b,
                s->ldb, beta, c, s->ldc);
}

void linalg_gemm_f64(double *c, const double *a, const double *b, const struct linalg_shape *s,
                     double alpha, double beta) {
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, s->m, s->n, s->k, alpha, a, s->lda, b,
                s->ldb, beta, c, s->ldc);
}

bool linalg_solve_small(double *a, double *b, int n) {
    /* Symmetric elimination: a = L D L^T in place. */
    for (int i = 0; i < n; i++) {
        double pivot = a[i * n + i], scale = pivot;
        for (int k = 0; k < i; k++) pivot -= a[i * n + k] * a[i * n + k] * a[k * n + k];
        if (!(pivot > 1e-12 * scale)) return false;
        a[i * n + i] = pivot;
        for (int r = i + 1; r < n; r++) {
            double v = a[r * n + i];
            for (int k = 0; k < i; k++) v -= a[r * n + k] * a[i * n + k] * a[k * n + k];
            a[r * n + i] = v / pivot;
        }
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++) b[i] -= a[i * n + k] * b[k];
    for (int i = n - 1; i >= 0; i--) {
        b[i] /= a[i * n + i];
        for (int k = i + 1; k < n; k++) b[i] -= a[k * n + i] * b[k];
    }
    return true;
}

bool linalg_solve(double *a, double *b, int n) {
    int one = 1, info = 0;
    dposv_("L", &n, &one, a, &n, b, &n, &info);
    return info == 0;
}
