#include "engine/quant/mixed.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

/* -- The greedy walk ------------------------------------------------------------------------- */

/* An edge of a unit's lower convex hull. */
struct edge {
    double slope; /* harm saved by a byte */
    size_t unit;
    int from, to; /* choices, bits - 1 */
};

/* Steeper first; of one unit in their order, of equal ones the earlier unit. */
static int by_slope(const void *a, const void *b) {
    const struct edge *x = a, *y = b;
    if (x->slope != y->slope) return x->slope > y->slope ? -1 : 1;
    if (x->unit != y->unit) return x->unit < y->unit ? -1 : 1;
    return x->from - y->from;
}

static double slope_of(const struct mixed_unit *u, int from, int to) {
    return (u->harm[from] - u->harm[to]) / (double)(u->bytes[to] - u->bytes[from]);
}

/* The edges that lower the harm, from the smallest choice on; returns how many. */
static int hull(const struct mixed_unit *u, size_t unit, struct edge *edges) {
    int n = 0;
    for (int from = 0; from < BCQ_MAX_BITS - 1;) {
        int to = from + 1;
        for (int next = to + 1; next < BCQ_MAX_BITS; next++)
            if (slope_of(u, from, next) >= slope_of(u, from, to)) to = next;
        double slope = slope_of(u, from, to);
        if (!(slope > 0.0)) break;
        edges[n++] = (struct edge){slope, unit, from, to};
        from = to;
    }
    return n;
}

static int check_budget(const struct mixed_unit *units, size_t n, uint64_t budget,
                        struct error *err) {
    uint64_t least = 0;
    for (size_t i = 0; i < n; i++) least += units[i].bytes[0];
    return least <= budget ? 0
                           : error_set(err, -ERANGE, "mixed: 1 bit everywhere is over the budget");
}

int mixed_greedy(int *bits, double *price, const struct mixed_unit *units, size_t n,
                 uint64_t budget, struct error *err) {
    int r = check_budget(units, n, budget, err);
    if (r < 0) return r;
    struct edge *edges = malloc((n * (BCQ_MAX_BITS - 1) + 1) * sizeof *edges);
    if (!edges) return error_set(err, -ENOMEM, "mixed: out of memory");
    size_t n_edges = 0;
    for (size_t i = 0; i < n; i++) {
        bits[i] = 1;
        budget -= units[i].bytes[0];
        n_edges += (size_t)hull(&units[i], i, edges + n_edges);
    }
    qsort(edges, n_edges, sizeof *edges, by_slope);
    *price = 0.0;
    for (size_t i = 0; i < n_edges; i++) {
        const struct edge *e = &edges[i];
        uint64_t more = units[e->unit].bytes[e->to] - units[e->unit].bytes[e->from];
        bool follows = bits[e->unit] == e->from + 1; /* an edge before it may not have fitted */
        if (follows && more <= budget) {
            bits[e->unit] = e->to + 1;
            budget -= more;
        } else if (*price == 0.0) {
            *price = e->slope;
        }
    }
    free(edges);
    return 0;
}

/* -- Partial sums ---------------------------------------------------------------------------- */

struct state {
    uint64_t bytes;
    double harm, bound; /* of any whole choice that begins so */
    uint32_t parent;    /* in the layer before */
    uint8_t choice;
};

struct search {
    const struct mixed_unit *units;
    size_t n;
    uint64_t budget;
    double price, best;    /* of greedy: a byte, the whole harm */
    struct state **layers; /* (n + 1) */
    size_t *counts;        /* (n + 1) */
    uint64_t *rest_bytes;  /* (n + 1) least bytes of the units from i on */
    double *rest_cost;     /* (n + 1) least harm + price * bytes of them */
};

static int by_bytes(const void *a, const void *b) {
    const struct state *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    if (x->harm != y->harm) return x->harm < y->harm ? -1 : 1;
    if (x->parent != y->parent) return x->parent < y->parent ? -1 : 1;
    return x->choice - y->choice;
}

static int by_bound(const void *a, const void *b) {
    const struct state *x = a, *y = b;
    if (x->bound != y->bound) return x->bound < y->bound ? -1 : 1;
    return by_bytes(a, b);
}

static void sum_rest(struct search *s) {
    for (size_t i = s->n; i-- > 0;) {
        const struct mixed_unit *u = &s->units[i];
        double least = INFINITY;
        for (int c = 0; c < BCQ_MAX_BITS; c++)
            least = fmin(least, u->harm[c] + s->price * (double)u->bytes[c]);
        s->rest_bytes[i] = s->rest_bytes[i + 1] + u->bytes[0];
        s->rest_cost[i] = s->rest_cost[i + 1] + least;
    }
}

/* Every choice for unit i after every state before it, less those that cannot fit or win. */
static size_t extend(const struct search *s, size_t i, struct state *out) {
    const struct mixed_unit *u = &s->units[i];
    size_t n = 0;
    for (size_t k = 0; k < s->counts[i]; k++) {
        const struct state *from = &s->layers[i][k];
        for (int c = 0; c < BCQ_MAX_BITS; c++) {
            struct state to = {.bytes = from->bytes + u->bytes[c],
                               .harm = from->harm + u->harm[c],
                               .parent = (uint32_t)k,
                               .choice = (uint8_t)c};
            if (to.bytes + s->rest_bytes[i + 1] > s->budget) continue;
            double left = (double)(s->budget - to.bytes);
            to.bound = to.harm + fmax(0.0, s->rest_cost[i + 1] - s->price * left);
            /* What only equals greedy within rounding is no gain. */
            if (to.bound < s->best * (1.0 - 1e-12)) out[n++] = to;
        }
    }
    return n;
}

/* Drops the states that another one beats in both, then the least promising beyond the limit. */
static size_t thin(struct state *states, size_t n) {
    size_t kept = 0;
    qsort(states, n, sizeof *states, by_bytes);
    for (size_t k = 0; k < n; k++)
        if (kept == 0 || states[k].harm < states[kept - 1].harm) states[kept++] = states[k];
    if (kept <= MIXED_STATES) return kept;
    qsort(states, kept, sizeof *states, by_bound);
    qsort(states, MIXED_STATES, sizeof *states, by_bytes);
    return MIXED_STATES;
}

static int do_unit(struct search *s, size_t i, struct state *scratch, struct error *err) {
    size_t n = thin(scratch, extend(s, i, scratch));
    s->layers[i + 1] = malloc((n ? n : 1) * sizeof *s->layers[i + 1]);
    if (!s->layers[i + 1]) return error_set(err, -ENOMEM, "mixed: out of memory");
    memcpy(s->layers[i + 1], scratch, n * sizeof *scratch);
    s->counts[i + 1] = n;
    return 0;
}

/* Better than greedy, if there is anything: of the last states the one with the least harm. */
static void read_choices(const struct search *s, int *bits) {
    if (s->counts[s->n] == 0) return;
    size_t k = s->counts[s->n] - 1; /* harm falls along a layer */
    for (size_t i = s->n; i-- > 0;) {
        bits[i] = s->layers[i + 1][k].choice + 1;
        k = s->layers[i + 1][k].parent;
    }
}

static int run_search(struct search *s, int *bits, struct error *err) {
    struct state *scratch = malloc((size_t)MIXED_STATES * BCQ_MAX_BITS * sizeof *scratch);
    s->layers = calloc(s->n + 1, sizeof *s->layers);
    s->counts = calloc(s->n + 1, sizeof *s->counts);
    s->rest_bytes = calloc(s->n + 1, sizeof *s->rest_bytes);
    s->rest_cost = calloc(s->n + 1, sizeof *s->rest_cost);
    int r = -ENOMEM;
    if (scratch && s->layers && s->counts && s->rest_bytes && s->rest_cost) {
        s->layers[0] = calloc(1, sizeof **s->layers);
        s->counts[0] = 1;
        r = s->layers[0] ? 0 : -ENOMEM;
    }
    if (r < 0) error_set(err, r, "mixed: out of memory");
    if (r == 0) sum_rest(s);
    for (size_t i = 0; r == 0 && i < s->n; i++) r = do_unit(s, i, scratch, err);
    if (r == 0) read_choices(s, bits);
    for (size_t i = 0; s->layers && i <= s->n; i++) free(s->layers[i]);
    free(s->layers);
    free(s->counts);
    free(s->rest_bytes);
    free(s->rest_cost);
    free(scratch);
    return r;
}

int mixed_allocate(int *bits, const struct mixed_unit *units, size_t n, uint64_t budget,
                   struct error *err) {
    struct search s = {.units = units, .n = n, .budget = budget};
    int r = mixed_greedy(bits, &s.price, units, n, budget, err);
    if (r < 0) return r;
    for (size_t i = 0; i < n; i++) s.best += units[i].harm[bits[i] - 1];
    return run_search(&s, bits, err);
}
