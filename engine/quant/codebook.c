#include "engine/quant/codebook.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

enum {
    /* Groups that a search carries side by side. On AVX2 gcc takes wider vectors to pieces. */
    LANES = 8,
    MAX_EDGES = 2 * ((1 << CODEBOOK_MAX_STEP_BITS) - 1) + 1,
    WIDE_GROUP = 256, /* columns from which on the search is small beside the rest */
    NARROW_SLACK = 3,
    NARROW_CANDIDATES = 512,
    WIDE_CANDIDATES = 8192,
    MAX_FACTORS = 64,
    /* A group this wide may hold an outlier far from the rest: look at tighter ranges as well. */
    OUTLIER_GROUP = 64,
    COARSE = 2,     /* shapes of a row are first compared on every second range */
    SHORT_LIST = 16 /* and so many of them, beyond those that are asked for, on all ranges */
};

/* Grid units below this (far below what fp16 holds) count as no spread, and nothing overflows. */
static const float least_step = 1e-30f;

/* Lanes are independent and no multiply is fused with an add, so every version of a function
 * gives the same bits. ThreadSanitizer is called by the code that picks a version, which runs
 * before it is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_THREAD__)
#define WIDE_VERSIONS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE_VERSIONS
#endif

int codebook_step_bits(int bits) { return bits < 4 ? bits + 2 : 5; }

static int sum_of(const uint8_t *d, int bits) {
    int sum = 0;
    for (int i = 0; i < bits; i++) sum += d[i];
    return sum;
}

/* The next d_1 <= .. <= d_m in lexical order with every sum up to top; false after the last. */
static bool next_shape(uint8_t *d, int bits, int top) {
    for (int i = bits - 1; i >= 0; i--) {
        uint8_t value = (uint8_t)(d[i] + 1);
        if (value > BCQ_MAX_SHAPE) continue;
        int sum = sum_of(d, i) + (bits - i) * value;
        if (sum > top) continue;
        for (int j = i; j < bits; j++) d[j] = value;
        return true;
    }
    return false;
}

struct counts {
    int shapes, candidates;
};

static struct counts count_set(int bits, int top, int slack) {
    struct counts n = {0, 0};
    uint8_t d[BCQ_MAX_BITS] = {1, 1, 1, 1};
    do {
        int sum = sum_of(d, bits);
        if (sum < top - slack || sum > top) continue;
        n.shapes++;
        n.candidates += top - sum + 1;
    } while (next_shape(d, bits, top));
    return n;
}

static int byte_order(const void *a, const void *b) {
    return *(const uint8_t *)a - *(const uint8_t *)b;
}

static void add_candidate(struct codebook_set *set, const uint8_t *d, int offset) {
    uint8_t *levels = set->levels + (size_t)set->n_candidates * (size_t)set->n_levels;
    for (int code = 0; code < set->n_levels; code++) {
        int level = offset;
        for (int i = 0; i < set->bits; i++) level += code >> i & 1 ? d[i] : 0;
        levels[code] = (uint8_t)level;
    }
    qsort(levels, (size_t)set->n_levels, 1, byte_order);
    struct codebook_border *borders =
        set->borders + (size_t)set->n_candidates * (size_t)(set->n_levels - 1);
    for (int l = 1; l < set->n_levels; l++)
        borders[l - 1] =
            (struct codebook_border){(float)(levels[l] - levels[l - 1]), levels[l - 1] + levels[l]};
    set->shape_of[set->n_candidates] = (uint16_t)set->n_shapes;
    set->offset[set->n_candidates++] = (uint8_t)offset;
}

static void fill_set(struct codebook_set *set, int slack) {
    uint8_t d[BCQ_MAX_BITS] = {1, 1, 1, 1};
    do {
        int sum = sum_of(d, set->bits);
        if (sum < set->top - slack || sum > set->top) continue;
        set->first_of[set->n_shapes] = set->n_candidates;
        for (int offset = 0; offset <= set->top - sum; offset++) add_candidate(set, d, offset);
        memcpy(set->shapes + (size_t)set->n_shapes * (size_t)set->bits, d, (size_t)set->bits);
        set->n_shapes++;
    } while (next_shape(d, set->bits, set->top));
    set->first_of[set->n_shapes] = set->n_candidates;
}

static int choose_slack(int bits, int top, int width, int max_shapes, struct counts *ret) {
    int limit = width < WIDE_GROUP ? NARROW_CANDIDATES : WIDE_CANDIDATES;
    int last = width < WIDE_GROUP ? NARROW_SLACK : top, best = -1;
    for (int slack = 0; slack <= last && slack <= top - bits; slack++) {
        struct counts n = count_set(bits, top, slack);
        /* Slack 0 is taken however long its list: it is the least there is. */
        if (n.shapes > max_shapes || (slack > 0 && n.candidates > limit)) break;
        best = slack;
        *ret = n;
    }
    return best;
}

int codebook_set_new(struct codebook_set **ret, int bits, int step_bits, int width, int max_shapes,
                     struct error *err) {
    if (bits < 1 || bits > BCQ_MAX_BITS)
        return error_set(err, -EINVAL, "bits: %d is not in 1..%d", bits, BCQ_MAX_BITS);
    if (step_bits < bits || step_bits > CODEBOOK_MAX_STEP_BITS)
        return error_set(err, -EINVAL, "step bits: %d is not in %d..%d", step_bits, bits,
                         CODEBOOK_MAX_STEP_BITS);
    int top = (1 << step_bits) - 1;
    /* One plane alone cannot span a grid that is wider than the largest d. */
    if (top > bits * BCQ_MAX_SHAPE) top = bits * BCQ_MAX_SHAPE;
    struct counts n = {0, 0};
    int slack = choose_slack(bits, top, width, max_shapes, &n);
    if (slack < 0)
        return error_set(err, -EINVAL, "step bits: %d gives more than %d shapes", step_bits,
                         max_shapes);
    struct codebook_set *set = calloc(1, sizeof *set);
    if (!set) return error_set(err, -ENOMEM, "codebook: out of memory");
    set->bits = bits;
    set->step_bits = step_bits;
    set->top = top;
    set->n_levels = 1 << bits;
    set->shapes = malloc((size_t)n.shapes * (size_t)bits);
    set->shape_of = malloc((size_t)n.candidates * sizeof *set->shape_of);
    set->offset = malloc((size_t)n.candidates);
    set->levels = malloc((size_t)n.candidates * (size_t)set->n_levels);
    set->first_of = malloc(((size_t)n.shapes + 1) * sizeof *set->first_of);
    set->borders =
        malloc((size_t)n.candidates * (size_t)(set->n_levels - 1) * sizeof *set->borders);
    if (!set->shapes || !set->shape_of || !set->offset || !set->levels || !set->first_of ||
        !set->borders) {
        codebook_set_free(set);
        return error_set(err, -ENOMEM, "codebook: out of memory");
    }
    fill_set(set, slack);
    *ret = set;
    return 0;
}

void codebook_set_free(struct codebook_set *set) {
    if (!set) return;
    free(set->shapes);
    free(set->shape_of);
    free(set->offset);
    free(set->levels);
    free(set->first_of);
    free(set->borders);
    free(set);
}

/* Factors by which the two halves of a range are stretched. */
struct factors {
    int n;
    float value[MAX_FACTORS];
};

static struct factors make_factors(int n_ranges, int group) {
    struct factors f = {0};
    if (group >= OUTLIER_GROUP)
        for (int i = 0; i < 3; i++) f.value[f.n++] = 0.08f * (float)(i + 1);
    for (int i = 0; i < n_ranges && f.n < MAX_FACTORS; i++)
        f.value[f.n++] = 0.35f + 0.81f * (float)i / (float)(n_ranges - 1);
    return f;
}

/* One group as the search sees it. */
struct cell {
    const float *w, *h;
    int n;
    float low, high;
};

/* LANES floats, or what comparing them gives. Arithmetic on these needs no intrinsics, and plain
 * loops over arrays are left in memory by the compilers, which costs a factor of ten here. */
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t lane_ints __attribute__((vector_size(LANES * sizeof(int32_t))));

/* Everything about LANES groups on one range: u = (w - center) / step, counted from the middle of
 * the grid, which keeps the sums small. */
struct table {
    lanes step, center;
    lanes mass, first, second;   /* sums of h, h u, h u^2 */
    lanes border[MAX_EDGES + 1]; /* e: (e - top) P0 - 2 P1 of what lies below border e / 2 */
    lanes bin_first[MAX_EDGES + 1];
};

static void lay_range(struct table *t, const struct cell *cells, int n_cells, float low, float high,
                      int top) {
    for (int i = 0; i < LANES; i++) {
        const struct cell *c = &cells[i < n_cells ? i : 0];
        float middle = 0.5f * (c->low + c->high), half = 0.5f * (c->high - c->low);
        t->step[i] = (low + high) * half / (float)top;
        t->center[i] = middle + 0.5f * (high - low) * half;
        t->mass[i] = t->first[i] = t->second[i] = 0.0f;
    }
}

/* Bins 0 .. 2 top + 1: bin b holds what lies in [b - 1, b) half units, the ends what is beyond. */
static void bin_weights(struct table *t, const struct cell *c, int lane, int top) {
    float inverse = t->step[lane] > least_step ? 1.0f / t->step[lane] : 0.0f;
    float beyond = (float)(2 * top + 1);
    for (int k = 0; k < c->n; k++) {
        float u = (c->w[k] - t->center[lane]) * inverse, h = c->h[k];
        float place = 2.0f * u + (float)top;
        int bin = !(place >= 0.0f) ? 0 : place >= beyond ? 2 * top + 1 : (int)place + 1;
        t->border[bin][lane] += h;
        t->bin_first[bin][lane] += h * u;
        t->second[lane] += h * u * u;
    }
}

/* Turns bins into sums below each border, then into the border's term. */
WIDE_VERSIONS static void sum_bins(struct table *t, int top) {
    lanes mass = t->border[0] * 0.0f, first = mass;
    for (int e = 0; e <= 2 * top + 1; e++) {
        mass += t->border[e];
        first += t->bin_first[e];
        t->border[e] = (float)(e - top) * mass - 2.0f * first;
    }
    t->mass = mass;
    t->first = first;
}

/* The least cost so far, and which range and candidate gave it. */
struct best {
    lanes cost;
    lane_ints which;
};

/* Candidates first to end - 1 on the range that the table was laid for. With levels l_1 < .. < l_L
 * the error is the sum over all weights of (u - l_L)^2, less what the weights below each border
 * save: (l_b+1 - l_b) * border term. */
WIDE_VERSIONS static void score(const struct codebook_set *set, const struct table *t, int first,
                                int end, int32_t range, bool per_shape, struct best *best) {
    lanes square = t->step * t->step;
    int n_borders = set->n_levels - 1;
    for (int32_t c = first; c < end; c++) {
        const struct codebook_border *border = set->borders + (size_t)c * (size_t)n_borders;
        struct best *b = best + (per_shape ? set->shape_of[c] : 0);
        float top = (float)set->levels[(size_t)(c + 1) * (size_t)set->n_levels - 1];
        float last = top - 0.5f * (float)set->top;
        lanes cost = t->second + last * (last * t->mass - 2.0f * t->first);
        for (int l = 0; l < n_borders; l++) cost -= border[l].gap * t->border[border[l].at];
        cost *= square;
        lane_ints better = cost < b->cost;
        b->which = (better & (range * set->n_candidates + c)) | (~better & b->which);
        b->cost = (lanes)((better & (lane_ints)cost) | (~better & (lane_ints)b->cost));
    }
}

static void clear_best(struct best *best) {
    for (int i = 0; i < LANES; i++) {
        best->cost[i] = INFINITY;
        best->which[i] = 0;
    }
}

struct search {
    const struct codebook_set *set;
    const struct codebook_query *q;
    struct factors factors;
    int n_groups, n_slots, n_ranks, rows_at_once;
    int n_listed; /* shapes of a row that are compared on all ranges; 0 = one shape is all */
    struct table *table;
    struct cell *cells; /* (rows_at_once * n_groups) */
    struct best *best;  /* (ceil(cells / LANES), n_slots) */
    double *sums;       /* (n_slots) of one row */
    int *listed;        /* (rows_at_once, n_listed) */
    bool *wanted;       /* (n_slots) listed for one of the rows at least */
};

static int n_pairs(const struct search *s) {
    return s->q->asymmetric ? s->factors.n * s->factors.n : s->factors.n;
}

static void range_pair(const struct search *s, int range, float *low, float *high) {
    *high = s->factors.value[range % s->factors.n];
    *low = s->q->asymmetric ? s->factors.value[range / s->factors.n] : *high;
}

static void lay_table(struct search *s, const struct cell *cells, int n_cells, int range) {
    struct table *t = s->table;
    size_t n_bins = 2 * (size_t)s->set->top + 2;
    float low, high;
    range_pair(s, range, &low, &high);
    memset(t->border, 0, n_bins * sizeof *t->border);
    memset(t->bin_first, 0, n_bins * sizeof *t->bin_first);
    lay_range(t, cells, n_cells, low, high, s->set->top);
    for (int i = 0; i < n_cells; i++) bin_weights(t, &cells[i], i, s->set->top);
    sum_bins(t, s->set->top);
}

/* All candidates, on all ranges or on a few. */
static void explore(struct search *s, const struct cell *cells, int n_cells, struct best *best) {
    for (int i = 0; i < s->n_slots; i++) clear_best(&best[i]);
    /* Two ends that move alone start as one: the shapes' order is found on the diagonal. */
    int step = s->n_listed == 0 ? 1 : s->q->asymmetric ? COARSE * (s->factors.n + 1) : COARSE;
    for (int range = s->n_listed ? 1 : 0; range < n_pairs(s); range += step) {
        lay_table(s, cells, n_cells, range);
        score(s->set, s->table, 0, s->set->n_candidates, range, s->n_slots > 1, best);
    }
}

/* The wanted shapes, on all ranges. */
static void explore_wanted(struct search *s, const struct cell *cells, int n_cells,
                           struct best *best) {
    for (int shape = 0; shape < s->n_slots; shape++)
        if (s->wanted[shape]) clear_best(&best[shape]);
    for (int range = 0; range < n_pairs(s); range++) {
        lay_table(s, cells, n_cells, range);
        for (int shape = 0; shape < s->n_slots; shape++)
            if (s->wanted[shape])
                score(s->set, s->table, s->set->first_of[shape], s->set->first_of[shape + 1], range,
                      true, best);
    }
}

static void set_cell(struct cell *c, const struct codebook_query *q, int row, int group) {
    int first = group * q->group;
    c->w = q->w + (size_t)row * (size_t)q->cols + (size_t)first;
    c->h = q->h + (size_t)row * (size_t)q->h_stride + (size_t)first;
    c->n = q->cols - first < q->group ? q->cols - first : q->group;
    c->low = c->high = c->w[0];
    for (int k = 1; k < c->n; k++) {
        if (c->w[k] < c->low) c->low = c->w[k];
        if (c->w[k] > c->high) c->high = c->w[k];
    }
}

static const struct best *slot_of(const struct search *s, int cell, int slot) {
    return &s->best[(size_t)(cell / LANES) * (size_t)s->n_slots + (size_t)slot];
}

/* Sums of every shape's cost over cells first .. first + n_groups - 1. */
static void sum_shapes(struct search *s, int first) {
    for (int shape = 0; shape < s->n_slots; shape++) s->sums[shape] = 0.0;
    for (int c = first; c < first + s->n_groups; c++) {
        const struct best *slots = slot_of(s, c, 0);
        for (int shape = 0; shape < s->n_slots; shape++)
            s->sums[shape] += (double)slots[shape].cost[c % LANES];
    }
}

/* The shape with the least sum, which is then out of the race; ties to the first. When all are
 * out, the first again. */
static int take_least(struct search *s) {
    int best = 0;
    for (int shape = 1; shape < s->n_slots; shape++)
        if (s->sums[shape] < s->sums[best]) best = shape;
    s->sums[best] = INFINITY;
    return best;
}

static void decode(const struct search *s, const struct cell *c, int32_t which, float cost,
                   struct codebook_choice *ret) {
    const struct codebook_set *set = s->set;
    int candidate = which % set->n_candidates, shape = set->shape_of[candidate];
    float low, high, middle = 0.5f * (c->low + c->high), half = 0.5f * (c->high - c->low);
    range_pair(s, which / set->n_candidates, &low, &high);
    float scale = (low + high) * half / (float)set->top;
    int sum = sum_of(set->shapes + (size_t)shape * (size_t)set->bits, set->bits);
    ret->shape = shape;
    ret->cost = cost > 0.0f ? cost : 0.0f;
    ret->scale = scale > least_step ? scale : 0.0f;
    ret->bias = middle;
    if (ret->scale > 0.0f)
        ret->bias =
            middle - low * half + scale * ((float)set->offset[candidate] + 0.5f * (float)sum);
}

/* What every row's short list holds, by the costs on a few ranges. */
static void list_shapes(struct search *s, int n_rows) {
    memset(s->wanted, 0, (size_t)s->n_slots * sizeof *s->wanted);
    for (int r = 0; r < n_rows; r++) {
        sum_shapes(s, r * s->n_groups);
        for (int i = 0; i < s->n_listed; i++) {
            int shape = take_least(s);
            s->listed[r * s->n_listed + i] = shape;
            s->wanted[shape] = true;
        }
    }
}

/* A row looks at its own list alone, so that no other row has a say in it. */
static void sum_listed(struct search *s, int r) {
    sum_shapes(s, r * s->n_groups);
    const int *listed = s->listed + (size_t)r * (size_t)s->n_listed;
    for (int shape = 0; shape < s->n_slots; shape++) {
        bool own = false;
        for (int i = 0; i < s->n_listed; i++) own |= listed[i] == shape;
        if (!own) s->sums[shape] = INFINITY;
    }
}

static void choose(struct search *s, int r, struct codebook_choice *ret) {
    if (s->n_listed) sum_listed(s, r);
    for (int rank = 0; rank < s->n_ranks; rank++) {
        int slot = s->n_listed ? take_least(s) : 0;
        for (int c = r * s->n_groups; c < (r + 1) * s->n_groups; c++) {
            const struct best *b = slot_of(s, c, slot);
            decode(s, &s->cells[c], b->which[c % LANES], b->cost[c % LANES], ret++);
        }
    }
}

static void search_rows(struct search *s, int row, int n_rows, struct codebook_choice *ret) {
    int n_cells = n_rows * s->n_groups;
    for (int c = 0; c < n_cells; c++)
        set_cell(&s->cells[c], s->q, row + c / s->n_groups, c % s->n_groups);
    for (int pass = 0; pass < (s->n_listed ? 2 : 1); pass++) {
        if (pass == 1) list_shapes(s, n_rows);
        for (int c = 0; c < n_cells; c += LANES)
            (pass == 0 ? explore
                       : explore_wanted)(s, s->cells + c, n_cells - c < LANES ? n_cells - c : LANES,
                                         s->best + (size_t)(c / LANES) * (size_t)s->n_slots);
    }
    for (int r = 0; r < n_rows; r++)
        choose(s, r, ret + (size_t)r * (size_t)s->n_ranks * (size_t)s->n_groups);
}

/* Short lists pay where there are many shapes, and ranges enough to leave some out. */
static int list_length(const struct search *s) {
    int n = SHORT_LIST + (s->n_ranks > 1 ? s->n_ranks : 0);
    return s->n_slots == 1 ? 0 : n < s->n_slots ? n : s->n_slots;
}

int codebook_search(const struct codebook_set *set, const struct codebook_query *q,
                    struct codebook_choice *ret, struct error *err) {
    int n_groups = (q->cols + q->group - 1) / q->group;
    struct search s = {.set = set, .q = q, .n_groups = n_groups};
    s.factors = make_factors(q->n_ranges, q->group);
    s.n_slots = q->one_shape && n_groups > 1 ? set->n_shapes : 1;
    s.n_ranks = q->n_ranks > 1 ? q->n_ranks : 1;
    s.rows_at_once = n_groups < LANES ? LANES / n_groups : 1;
    size_t n_cells = (size_t)s.rows_at_once * (size_t)n_groups;
    s.table = aligned_alloc(sizeof(lanes), sizeof *s.table);
    s.cells = malloc(n_cells * sizeof *s.cells);
    s.best = aligned_alloc(sizeof(lanes),
                           (n_cells + LANES - 1) / LANES * (size_t)s.n_slots * sizeof *s.best);
    s.sums = malloc((size_t)s.n_slots * sizeof *s.sums);
    s.n_listed = list_length(&s);
    s.listed = calloc((size_t)s.rows_at_once * (size_t)s.n_listed + 1, sizeof *s.listed);
    s.wanted = calloc((size_t)s.n_slots, sizeof *s.wanted);
    int r = 0;
    if (!s.table || !s.cells || !s.best || !s.sums || !s.listed || !s.wanted) {
        r = error_set(err, -ENOMEM, "codebook search: out of memory");
    } else {
        for (int row = 0; row < q->rows; row += s.rows_at_once)
            search_rows(&s, row, q->rows - row < s.rows_at_once ? q->rows - row : s.rows_at_once,
                        ret + (size_t)row * (size_t)s.n_ranks * (size_t)n_groups);
    }
    free(s.table);
    free(s.cells);
    free(s.best);
    free(s.sums);
    free(s.listed);
    free(s.wanted);
    return r;
}
