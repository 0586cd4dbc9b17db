#include "engine/train/loss.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "engine/quant/linalg.h"
#include "engine/quant/parallel.h"
#include "engine/train/gemm.h"
#include "engine/train/wide.h"
#include "engine/splitmix.h"
#include "kernels/error.h"

enum {
    LANES = 16,
    MOST_ROWS = 512,
    LOGITS = 24 << 20 /* of a chunk: 96 MiB, twice */
};

struct loss {
    const float *head, *teacher_head;
    int vocab, dim, n_threads, chunk;
    float *student, *teacher; /* (chunk, vocab) logits */
    double *rows;             /* (chunk) losses */
};

int loss_new(struct loss **ret, const float *head, const float *teacher_head, int vocab, int dim,
             int n_threads, struct error *err) {
    struct loss *l = calloc(1, sizeof *l);
    if (!l) return error_set(err, -ENOMEM, "loss: out of memory");
    linalg_init(); /* the threads are parallel.h's */
    int chunk = LOGITS / vocab < MOST_ROWS ? LOGITS / vocab : MOST_ROWS;
    if (chunk < 1) chunk = 1;
    size_t n = (size_t)chunk * (size_t)vocab;
    *l = (struct loss){.head = head,
                       .teacher_head = teacher_head,
                       .vocab = vocab,
                       .dim = dim,
                       .n_threads = n_threads,
                       .chunk = chunk,
                       .student = malloc(n * sizeof(float)),
                       .teacher = malloc(n * sizeof(float)),
                       .rows = malloc((size_t)chunk * sizeof(double))};
    if (!l->student || !l->teacher || !l->rows) {
        loss_free(l);
        return error_set(err, -ENOMEM, "loss: out of memory");
    }
    *ret = l;
    return 0;
}

void loss_free(struct loss *l) {
    if (!l) return;
    free(l->student);
    free(l->teacher);
    free(l->rows);
    free(l);
}

struct work {
    const struct loss *l;
    const int32_t *targets; /* of the chunk; NULL: the teacher's logits */
    float share;            /* of a row in the mean */
};

static double add_lanes(const float *lanes) {
    double sum = 0.0;
    for (int j = 0; j < LANES; j++) sum += (double)lanes[j];
    return sum;
}

/* Logarithm of the sum of exp(x). */
WIDE_VERSIONS static float log_sum(const float *x, int n) {
    float tops[LANES], sums[LANES] = {0}, top = -INFINITY;
    int i = 0;
    for (int j = 0; j < LANES; j++) tops[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) tops[j] = x[i + j] > tops[j] ? x[i + j] : tops[j];
    for (; i < n; i++) tops[0] = x[i] > tops[0] ? x[i] : tops[0];
    for (int j = 0; j < LANES; j++) top = tops[j] > top ? tops[j] : top;
    for (i = 0; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) sums[j] += wide_exp(x[i + j] - top);
    for (; i < n; i++) sums[0] += wide_exp(x[i] - top);
    return top + (float)log(add_lanes(sums));
}

/* s becomes (softmax(s) - softmax(t)) * share. */
WIDE_VERSIONS static double diverge(float *s, float s_sum, const float *t, float t_sum, float share,
                                    int n) {
    float sums[LANES] = {0};
    for (int i = 0; i < n; i += LANES) {
        int width = n - i < LANES ? n - i : LANES;
        for (int j = 0; j < width; j++) {
            float log_t = t[i + j] - t_sum, log_s = s[i + j] - s_sum, p = wide_exp(log_t);
            sums[j] += p * (log_t - log_s);
            s[i + j] = (wide_exp(log_s) - p) * share;
        }
    }
    return add_lanes(sums);
}

WIDE_VERSIONS static void soften(float *s, float s_sum, float share, int n) {
    for (int i = 0; i < n; i++) s[i] = wide_exp(s[i] - s_sum) * share;
}

static void score_row(void *arg, size_t row) {
    const struct work *k = arg;
    int n = k->l->vocab;
    float *s = k->l->student + row * (size_t)n, s_sum = log_sum(s, n);
    if (!k->targets) {
        const float *t = k->l->teacher + row * (size_t)n;
        k->l->rows[row] = diverge(s, s_sum, t, log_sum(t, n), k->share, n);
        return;
    }
    int32_t target = k->targets[row];
    float share = target < 0 ? 0.0f : k->share;
    k->l->rows[row] = target < 0 ? 0.0 : (double)s_sum - (double)s[target];
    soften(s, s_sum, share, n);
    if (target >= 0) s[target] -= share;
}

static double run(struct loss *l, const float *teacher, const int32_t *targets,
                  const float *student, int n, float *grad) {
    double sum = 0.0;
    for (int first = 0; first < n; first += l->chunk) {
        int rows = n - first < l->chunk ? n - first : l->chunk;
        size_t at = (size_t)first * (size_t)l->dim;
        struct work k = {
            .l = l, .targets = targets ? targets + first : NULL, .share = 1.0f / (float)n};
        gemm(GEMM_NT, rows, l->vocab, l->dim, student + at, l->head, 0.0f, l->student,
             l->n_threads);
        if (teacher)
            gemm(GEMM_NT, rows, l->vocab, l->dim, teacher + at, l->teacher_head, 0.0f, l->teacher,
                 l->n_threads);
        parallel_for(l->n_threads, (size_t)rows, score_row, &k);
        for (int i = 0; i < rows; i++) sum += l->rows[i];
        if (grad)
            gemm(GEMM_NN, rows, l->dim, l->vocab, l->student, l->head, 0.0f, grad + at,
                 l->n_threads);
    }
    return sum / n;
}

double loss_divergence(struct loss *l, const float *teacher, const float *student, int n,
                       float *grad) {
    return run(l, teacher, NULL, student, n, grad);
}

double loss_cross_entropy(struct loss *l, const int32_t *targets, const float *student, int n,
                          float *grad) {
    return run(l, NULL, targets, student, n, grad);
}

struct draws {
    struct loss *l;
    int32_t *tokens;
    uint64_t seed; /* of the chunk's first row */
};

static void draw_row(void *arg, size_t row) {
    const struct draws *d = arg;
    int n = d->l->vocab, token = 0;
    const float *s = d->l->student + row * (size_t)n;
    uint64_t state = d->seed + row * SPLITMIX_STEP;
    double left = (double)(splitmix_next(&state) >> 11) * 0x1p-53;
    float sum = log_sum(s, n);
    for (; token + 1 < n; token++) {
        left -= (double)expf(s[token] - sum);
        if (left < 0.0) break;
    }
    d->tokens[row] = token;
}

void loss_draw(struct loss *l, int32_t *tokens, const float *student, int n, uint64_t seed) {
    for (int first = 0; first < n; first += l->chunk) {
        int rows = n - first < l->chunk ? n - first : l->chunk;
        struct draws d = {l, tokens + first, seed + (uint64_t)first * SPLITMIX_STEP};
        gemm(GEMM_NT, rows, l->vocab, l->dim, student + (size_t)first * (size_t)l->dim, l->head,
             0.0f, l->student, l->n_threads);
        parallel_for(l->n_threads, (size_t)rows, draw_row, &d);
    }
}
