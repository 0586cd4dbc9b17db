/* The losses against their definitions in fp64, gradients against central differences of those. */
#include "engine/train/loss.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 37, DIM = 7, ROWS = 9 };

static double wave(int i, int seed) {
    return sin(i * 0.83 + seed) + 0.5 * cos(i * (double)i * 0.011);
}

struct setting {
    float head[VOCAB * DIM], other[VOCAB * DIM], teacher[ROWS * DIM], student[ROWS * DIM];
    double wide[ROWS * DIM]; /* the student's */
    int32_t targets[ROWS];
};

static struct setting make(void) {
    struct setting s;
    for (int i = 0; i < VOCAB * DIM; i++) {
        s.head[i] = (float)wave(i, 1);
        s.other[i] = (float)wave(i, 2);
    }
    for (int i = 0; i < ROWS * DIM; i++) {
        s.teacher[i] = (float)wave(i, 3);
        s.student[i] = (float)wave(i, 4);
        s.wide[i] = (double)s.student[i];
    }
    for (int i = 0; i < ROWS; i++) s.targets[i] = i == 4 ? -1 : i * 5 % VOCAB;
    return s;
}

static void log_probs(const float *head, const double *x, double *out) {
    double sum = 0.0;
    for (int v = 0; v < VOCAB; v++) {
        out[v] = 0.0;
        for (int d = 0; d < DIM; d++) out[v] += (double)head[v * DIM + d] * x[d];
        sum += exp(out[v]);
    }
    for (int v = 0; v < VOCAB; v++) out[v] -= log(sum);
}

static double divergence(const struct setting *s) {
    double sum = 0.0, p[VOCAB], q[VOCAB], x[DIM];
    for (int r = 0; r < ROWS; r++) {
        for (int d = 0; d < DIM; d++) x[d] = (double)s->teacher[r * DIM + d];
        log_probs(s->other, x, p);
        log_probs(s->head, s->wide + r * DIM, q);
        for (int v = 0; v < VOCAB; v++) sum += exp(p[v]) * (p[v] - q[v]);
    }
    return sum / ROWS;
}

static double cross_entropy(const struct setting *s) {
    double sum = 0.0, q[VOCAB];
    for (int r = 0; r < ROWS; r++) {
        log_probs(s->head, s->wide + r * DIM, q);
        if (s->targets[r] >= 0) sum -= q[s->targets[r]];
    }
    return sum / ROWS;
}

static void check_slopes(struct setting *s, double (*value)(const struct setting *s),
                         const float *grad) {
    for (int i = 0; i < ROWS * DIM; i++) {
        double kept = s->wide[i], step = 1e-5;
        s->wide[i] = kept + step;
        double above = value(s);
        s->wide[i] = kept - step;
        double below = value(s);
        s->wide[i] = kept;
        double want = (above - below) / (2.0 * step);
        cr_assert_lt(fabs((double)grad[i] - want), 1e-6, "%d: %g, %g", i, (double)grad[i], want);
    }
}

Test(loss, divergence_and_its_gradient) {
    struct setting s = make();
    struct loss *l;
    float grad[ROWS * DIM];
    cr_assert_eq(loss_new(&l, s.head, s.other, VOCAB, DIM, 2, NULL), 0);
    cr_assert_float_eq(loss_divergence(l, s.teacher, s.student, ROWS, NULL), divergence(&s), 1e-6);
    cr_assert_float_eq(loss_divergence(l, s.teacher, s.student, ROWS, grad), divergence(&s), 1e-6);
    check_slopes(&s, divergence, grad);
    loss_free(l);
}

Test(loss, cross_entropy_and_its_gradient) {
    struct setting s = make();
    struct loss *l;
    float grad[ROWS * DIM];
    cr_assert_eq(loss_new(&l, s.head, NULL, VOCAB, DIM, 1, NULL), 0);
    cr_assert_float_eq(loss_cross_entropy(l, s.targets, s.student, ROWS, grad), cross_entropy(&s),
                       1e-6);
    check_slopes(&s, cross_entropy, grad);
    for (int d = 0; d < DIM; d++) cr_assert_eq(grad[4 * DIM + d], 0.0f, "no target, no gradient");
    loss_free(l);
}

/* A vocabulary so large that rows go through in several chunks. */
Test(loss, chunks_do_not_show) {
    enum { WIDE = 1 << 18, N = 100 };
    float *head = malloc(WIDE * sizeof *head), states[N], teacher[N], grad[N], part[N];
    struct loss *l;
    cr_assert(head);
    for (int i = 0; i < WIDE; i++) head[i] = (float)wave(i, 5);
    for (int i = 0; i < N; i++) {
        states[i] = (float)wave(i, 6);
        teacher[i] = (float)wave(i, 7);
    }
    cr_assert_eq(loss_new(&l, head, head, WIDE, 1, 2, NULL), 0);
    double all = loss_divergence(l, teacher, states, N, grad), sum = 0.0;
    for (int i = 0; i < N; i++) {
        sum += loss_divergence(l, teacher + i, states + i, 1, part) / N;
        cr_assert_float_eq(grad[i], part[0] / N, 1e-7);
    }
    cr_assert_float_eq(all, sum, 1e-6);
    cr_assert_gt(all, 0.0);
    loss_free(l);
    free(head);
}

Test(loss, what_is_not_finite_shows) {
    struct setting s = make();
    struct loss *l;
    cr_assert_eq(loss_new(&l, s.head, s.other, VOCAB, DIM, 1, NULL), 0);
    s.student[3] = NAN;
    cr_assert_not(isfinite(loss_divergence(l, s.teacher, s.student, ROWS, NULL)));
    loss_free(l);
}

Test(loss, draws_follow_the_distribution) {
    enum { DRAWS = 20000 };
    struct setting s = make();
    float *rows = malloc((size_t)DRAWS * DIM * sizeof *rows);
    int32_t *tokens = malloc(DRAWS * sizeof *tokens), *again = malloc(DRAWS * sizeof *again);
    struct loss *l, *two;
    double p[VOCAB], counts[VOCAB] = {0};
    cr_assert(rows && tokens && again);
    for (int i = 0; i < DRAWS * DIM; i++) rows[i] = s.student[i % DIM];
    cr_assert_eq(loss_new(&l, s.head, NULL, VOCAB, DIM, 1, NULL), 0);
    cr_assert_eq(loss_new(&two, s.head, NULL, VOCAB, DIM, 2, NULL), 0);
    loss_draw(l, tokens, rows, DRAWS, 1);
    loss_draw(two, again, rows, DRAWS, 1);
    cr_assert_arr_eq(tokens, again, DRAWS * sizeof *tokens);
    loss_draw(l, again, rows, DRAWS, 2);
    cr_assert_neq(memcmp(tokens, again, DRAWS * sizeof *tokens), 0);
    log_probs(s.head, s.wide, p);
    for (int i = 0; i < DRAWS; i++) counts[tokens[i]]++;
    for (int v = 0; v < VOCAB; v++) {
        double share = exp(p[v]), deviation = sqrt(share * (1.0 - share) * DRAWS);
        cr_assert_float_eq(counts[v], share * DRAWS, 5.0 * deviation + 1.0, "%d", v);
    }
    loss_free(l);
    loss_free(two);
    free(rows);
    free(tokens);
    free(again);
}
