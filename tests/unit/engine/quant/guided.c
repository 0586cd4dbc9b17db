/* Guided moments against sums over tokens of (d loss / d z)^2 x x^T, with the slopes from differences
 * of the loss that the serving forward pass gives and the inputs as a tap sees them. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/offline.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/offline_fixture.h"
#include "tests/unit/engine/quant/block_rig.h"

enum { CTX = BLOCK_RIG_CTX, TOKENS = BLOCK_RIG_TOKENS, MAX_GROUPS = 2, WIDEST = 64 };

/* -- Inputs ---------------------------------------------------------------------------------- */

struct inputs {
    enum calibrate_input input;
    int n;
    double x[TOKENS * WIDEST];
};

static void take_inputs(void *arg, int layer, enum model_role role, const float *x, int n,
                        int width) {
    struct inputs *to = arg;
    if (layer != 0 || calibrate_input_of(role) != to->input) return;
    cr_assert(n == TOKENS && width <= WIDEST);
    to->n = width;
    for (int i = 0; i < n * width; i++) to->x[i] = (double)x[i];
}

static void tap_inputs(struct block_rig *r, struct inputs *to) {
    int32_t positions[TOKENS], seqs[TOKENS], blocks[] = {0, 1};
    for (int i = 0; i < TOKENS; i++) {
        positions[i] = i % CTX;
        seqs[i] = i / CTX;
    }
    struct batch batch = {.n_tokens = TOKENS,
                          .n_seqs = 2,
                          .tokens = r->tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = blocks,
                          .max_blocks = 1};
    model_set_tap(r->model, take_inputs, to);
    model_begin(r->model, &batch);
    model_embed(r->model);
    model_layer(r->model, 0);
    model_set_tap(r->model, NULL, NULL);
    cr_assert_gt(to->n, 0);
}

/* Gauss-Jordan with pivots on a (CTX, CTX) system for every right-hand side. */
static void invert(double a[CTX][CTX], double inverse[CTX][CTX]) {
    for (int i = 0; i < CTX; i++)
        for (int j = 0; j < CTX; j++) inverse[i][j] = i == j;
    for (int i = 0; i < CTX; i++) {
        int best = i;
        for (int k = i; k < CTX; k++)
            if (fabs(a[k][i]) > fabs(a[best][i])) best = k;
        for (int j = 0; j < CTX; j++) {
            double swap[2] = {a[i][j], inverse[i][j]};
            a[i][j] = a[best][j];
            inverse[i][j] = inverse[best][j];
            a[best][j] = swap[0];
            inverse[best][j] = swap[1];
        }
        double pivot = a[i][i];
        for (int j = 0; j < CTX; j++) {
            a[i][j] /= pivot;
            inverse[i][j] /= pivot;
        }
        for (int k = 0; k < CTX; k++) {
            double factor = a[k][i];
            for (int j = 0; k != i && j < CTX; j++) {
                a[k][j] -= factor * a[i][j];
                inverse[k][j] -= factor * inverse[i][j];
            }
        }
    }
}

/* A change of a row of weights that moves its output by 1 at one token of a window and by nothing at
 * the others: a row of the inputs' dual basis. */
static void dual(const struct inputs *in, int window, int token, double *along) {
    double gram[CTX][CTX] = {{0}}, inverse[CTX][CTX];
    const double *x = in->x + window * CTX * in->n;
    for (int i = 0; i < CTX; i++)
        for (int j = 0; j < CTX; j++)
            for (int k = 0; k < in->n; k++) gram[i][j] += x[i * in->n + k] * x[j * in->n + k];
    invert(gram, inverse);
    for (int k = 0; k < in->n; k++) {
        along[k] = 0.0;
        for (int t = 0; t < CTX; t++) along[k] += inverse[token][t] * x[t * in->n + k];
    }
}

/* -- Slopes ---------------------------------------------------------------------------------- */

struct served {
    struct offline o;
    struct weight_view view;
    enum model_role role;
    float *w, *logits;
};

static void serve(struct served *s, const char *name, enum model_role role) {
    struct error err;
    *s = (struct served){.role = role, .view = {.type = DTYPE_F32}};
    offline_fixture_open(&s->o, name, CTX);
    cr_assert(model_linear_shape(s->o.model, role, &s->view.rows, &s->view.cols));
    s->w = malloc((size_t)s->view.rows * (size_t)s->view.cols * sizeof *s->w);
    s->logits = malloc((size_t)model_get_config(s->o.model)->vocab * CTX * sizeof *s->logits);
    cr_assert(s->w && s->logits);
    cr_assert_eq(model_read_linear(s->o.model, 0, role, s->w, &err), 0);
    s->view.data = s->w;
}

static void serve_no_more(struct served *s) {
    offline_close(&s->o);
    free(s->w);
    free(s->logits);
}

/* Sum of -log p of every next token in a window. */
static double loss(struct served *s, const int32_t *tokens) {
    int32_t positions[CTX], seqs[CTX] = {0}, blocks[] = {0};
    struct error err;
    int vocab = model_get_config(s->o.model)->vocab;
    double loss = 0.0;
    for (int i = 0; i < CTX; i++) positions[i] = i;
    struct batch batch = {.n_tokens = CTX,
                          .n_seqs = 1,
                          .tokens = tokens,
                          .positions = positions,
                          .seqs = seqs,
                          .blocks = blocks,
                          .max_blocks = 1};
    cr_assert_eq(model_replace_linear(s->o.model, 0, s->role, &s->view, &err), 0);
    model_forward(s->o.model, &batch);
    cr_assert_eq(model_logits(s->o.model, s->logits, positions, CTX - 1, &err), 0);
    for (int t = 0; t + 1 < CTX; t++) {
        const float *row = s->logits + t * vocab;
        double sum = 0.0;
        for (int v = 0; v < vocab; v++) sum += exp((double)row[v]);
        loss += log(sum) - (double)row[tokens[t + 1]];
    }
    return loss;
}

static double slope(struct served *s, int row, const double *along, const int32_t *tokens) {
    double step = 0.03, losses[2];
    int cols = s->view.cols;
    float *w = s->w + row * cols, *kept = malloc((size_t)cols * sizeof *kept);
    cr_assert(kept);
    memcpy(kept, w, (size_t)cols * sizeof *w);
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < cols; k++)
            w[k] = (float)((double)kept[k] + (i ? -step : step) * along[k]);
        losses[i] = loss(s, tokens);
    }
    memcpy(w, kept, (size_t)cols * sizeof *w);
    free(kept);
    return (losses[0] - losses[1]) / (2.0 * step);
}

/* Mean over a group's rows of the squared slope at each token. */
static void square_slopes(struct served *s, const struct inputs *in, const int32_t *tokens,
                          int first, int end, double *ret) {
    for (int t = 0; t < TOKENS; t++) {
        double along[WIDEST];
        int window = t / CTX;
        dual(in, window, t % CTX, along);
        ret[t] = 0.0;
        /* The last token predicts nothing. */
        for (int row = first; row < end && t % CTX + 1 < CTX; row++) {
            double d = slope(s, row, along, tokens + window * CTX);
            ret[t] += d * d / (end - first);
        }
    }
}

/* -- Together -------------------------------------------------------------------------------- */

static void check_group(const struct inputs *in, const double *squares, const double *h) {
    double mean = 0.0, largest = 0.0;
    for (int t = 0; t < TOKENS; t++) mean += squares[t] / TOKENS;
    for (int i = 0; i < in->n; i++) largest = fmax(largest, h[i * in->n + i]);
    cr_assert_gt(mean, 0.0);
    for (int i = 0; i < in->n; i++)
        for (int j = 0; j < in->n; j++) {
            double want = 0.0;
            for (int t = 0; t < TOKENS; t++)
                want += squares[t] / mean * in->x[t * in->n + i] * in->x[t * in->n + j] / TOKENS;
            cr_assert_float_eq(h[i * in->n + j], want, 0.01 * largest, "%d, %d: %g, not %g", i, j,
                               h[i * in->n + j], want);
        }
}

static void check_role(enum model_role role, int n_groups, const int *borders) {
    struct block_rig r = {.o = {.hessian = HESSIAN_GUIDED, .groups = MAX_GROUPS}};
    struct inputs in = {.input = calibrate_input_of(role)};
    struct guided_moments m;
    struct served s;
    struct error err;
    int seen = 0;
    layer_defaults(&r.layer);
    block_rig_open(&r, "llama-bias", 0);
    tap_inputs(&r, &in);
    serve(&s, "models/llama-bias", role);
    cr_assert_eq(guided_moments_new(&m, r.b, in.input, &err), 0, "%s", err.text);
    cr_assert_eq(m.n, in.n);
    for (int i = 0; i < m.n_each; i++) {
        double squares[TOKENS];
        if (m.each[i].role != role) continue;
        cr_assert_eq(m.each[i].group, seen);
        cr_assert_lt(seen, n_groups);
        square_slopes(&s, &in, r.tokens, borders[seen], borders[seen + 1], squares);
        check_group(&in, squares, m.each[i].h);
        seen++;
    }
    cr_assert_eq(seen, n_groups);
    guided_moments_free(&m);
    serve_no_more(&s);
    block_rig_close(&r);
}

Test(guided, moments_weigh_tokens_by_squared_slopes_of_the_loss) {
    check_role(ROLE_O, 1, (const int[]){0, 64});
    check_role(ROLE_UP, 2, (const int[]){0, 80, 160});
}
