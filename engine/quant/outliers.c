#include "engine/quant/outliers.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/strip.h"
#include "kernels/error.h"
#include "kernels/float16.h"

enum { BUCKETS = 1 << 16 };

struct column;

/* What a pass over the scores does; bits are those of a float of at least 0, which sort as it. */
struct pass {
    const float *w;
    const double *h;
    int rows, cols, group;
    void (*see)(struct pass *p, uint32_t bits, int row, int column);
    uint64_t *counts;    /* (BUCKETS) */
    uint32_t prefix;     /* upper half of the bits that are counted; above BUCKETS: all */
    uint32_t least;      /* what is taken: more than this, */
    uint64_t at_least;   /* and so many that are equal */
    struct column *sums; /* (cols) */
    struct outlier_set *set;
};

static float mean_of(const float *w, int n) {
    double sum = 0.0;
    for (int k = 0; k < n; k++) sum += (double)w[k];
    return (float)(sum / n);
}

static void run_pass(struct pass *p) {
    for (int r = 0; r < p->rows; r++) {
        const float *row = p->w + (size_t)r * (size_t)p->cols;
        for (int first = 0; first < p->cols; first += p->group) {
            int n = p->cols - first < p->group ? p->cols - first : p->group;
            float mean = mean_of(row + first, n);
            for (int k = first; k < first + n; k++) {
                float away = row[k] - mean;
                float score = (float)p->h[k] * away * away;
                if (score > 0.0f) p->see(p, float_bits(score), r, k);
            }
        }
    }
}

static void count_high(struct pass *p, uint32_t bits, int row, int column) {
    (void)row;
    (void)column;
    p->counts[bits >> 16]++;
}

static void count_low(struct pass *p, uint32_t bits, int row, int column) {
    (void)row;
    (void)column;
    if (bits >> 16 == p->prefix) p->counts[bits & 0xffff]++;
}

static void take(struct pass *p, uint32_t bits, int row, int column) {
    struct outlier_set *set = p->set;
    if (bits < p->least) return;
    if (bits == p->least && p->at_least-- == 0) {
        p->at_least = 0;
        return;
    }
    if (set->starts[row + 1] >= OUTLIERS_MAX_ROW) return;
    set->starts[row + 1]++; /* a count for now */
    set->columns[set->n++] = (uint32_t)column;
}

/* The bucket in which the wanted-th largest lies; what is above it is taken off wanted. */
static uint32_t bucket_of(const uint64_t *counts, uint64_t *wanted) {
    uint32_t b = BUCKETS - 1;
    while (b > 0 && counts[b] < *wanted) *wanted -= counts[b--];
    return b;
}

/* The score that bounds the n largest, by its upper half and then by its lower one: no list of
 * scores is kept, which for a large matrix would be as large as the matrix. */
static void find_least(struct pass *p, uint64_t n) {
    p->see = count_high;
    memset(p->counts, 0, BUCKETS * sizeof *p->counts);
    run_pass(p);
    uint64_t wanted = n;
    p->prefix = bucket_of(p->counts, &wanted);
    p->see = count_low;
    memset(p->counts, 0, BUCKETS * sizeof *p->counts);
    run_pass(p);
    p->least = p->prefix << 16 | bucket_of(p->counts, &wanted);
    p->at_least = wanted;
}

static int choose(struct outlier_set *set, const float *w, const double *h, uint64_t n,
                  struct error *err) {
    struct pass p = {
        .w = w, .h = h, .rows = set->rows, .cols = set->cols, .group = set->group, .set = set};
    p.counts = malloc(BUCKETS * sizeof *p.counts);
    if (!p.counts) return error_set(err, -ENOMEM, "outliers: out of memory");
    find_least(&p, n);
    p.see = take;
    run_pass(&p);
    free(p.counts);
    for (int r = 0; r < set->rows; r++) set->starts[r + 1] += set->starts[r];
    return 0;
}

struct column {
    double score;
    int index;
};

static int by_falling_score(const void *a, const void *b) {
    const struct column *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->index - y->index;
}

static int by_index(const void *a, const void *b) {
    const struct column *x = a, *y = b;
    return x->index - y->index;
}

static void add_score(struct pass *p, uint32_t bits, int row, int column) {
    (void)row;
    p->sums[column].score += (double)float_from_bits(bits);
}

/* The n columns with the largest sums, in every row. */
static int choose_columns(struct outlier_set *set, const float *w, const double *h, uint32_t n,
                          struct error *err) {
    struct pass p = {.w = w,
                     .h = h,
                     .rows = set->rows,
                     .cols = set->cols,
                     .group = set->group,
                     .see = add_score};
    p.sums = malloc((size_t)set->cols * sizeof *p.sums);
    if (!p.sums) return error_set(err, -ENOMEM, "outliers: out of memory");
    for (int k = 0; k < set->cols; k++) p.sums[k] = (struct column){0.0, k};
    run_pass(&p);
    qsort(p.sums, (size_t)set->cols, sizeof *p.sums, by_falling_score);
    qsort(p.sums, n, sizeof *p.sums, by_index);
    for (int r = 0; r < set->rows; r++) {
        for (uint32_t i = 0; i < n; i++) set->columns[set->n++] = (uint32_t)p.sums[i].index;
        set->starts[r + 1] = set->n;
    }
    free(p.sums);
    return 0;
}

int outlier_set_new(struct outlier_set **ret, const float *w, const double *h, int rows, int cols,
                    int group, double percent, bool whole, struct error *err) {
    struct outlier_set *set = calloc(1, sizeof *set);
    if (!set) return error_set(err, -ENOMEM, "outliers: out of memory");
    uint64_t n = (uint64_t)(percent / 100.0 * (double)rows * (double)cols);
    uint32_t n_columns = (uint32_t)ceil(percent / 100.0 * (double)cols);
    if (whole) n = (uint64_t)n_columns * (uint64_t)rows;
    *set = (struct outlier_set){.rows = rows, .cols = cols, .group = group, .whole = whole};
    set->starts = calloc((size_t)rows + 1, sizeof *set->starts);
    set->columns = malloc((size_t)(n + 1) * sizeof *set->columns);
    set->values = calloc((size_t)n + 1, sizeof *set->values);
    int r = set->starts && set->columns && set->values
                ? 0
                : error_set(err, -ENOMEM, "outliers: out of memory");
    if (r == 0 && whole) r = choose_columns(set, w, h, n_columns, err);
    if (r == 0 && !whole && n > 0) r = choose(set, w, h, n, err);
    if (r < 0)
        outlier_set_free(set);
    else
        *ret = set;
    return r;
}

void outlier_set_free(struct outlier_set *set) {
    if (!set) return;
    free(set->starts);
    free(set->columns);
    free(set->values);
    free(set);
}

/* The mean of what is no outlier in the group of a row's e-th entry; 0 when nothing is left. */
static float rest_of(const struct outlier_set *set, int row, uint32_t e, const float *w) {
    int group = (int)set->columns[e] / set->group, first = group * set->group;
    int end = first + set->group < set->cols ? first + set->group : set->cols, n = end - first;
    double sum = 0.0;
    uint32_t i = e;
    for (int k = first; k < end; k++) sum += (double)w[k];
    while (i > set->starts[row] && (int)set->columns[i - 1] >= first) i--;
    for (; i < set->starts[row + 1] && (int)set->columns[i] < end; i++, n--)
        sum -= (double)w[set->columns[i]];
    return n > 0 ? (float)(sum / n) : 0.0f;
}

void outlier_blank(struct outlier_set *set, int row, int n_rows, float *rows, float *weights) {
    for (int r = 0; r < n_rows; r++) {
        size_t at = (size_t)r * (size_t)set->cols;
        uint32_t first = set->starts[row + r], end = set->starts[row + r + 1], e;
        /* All means before the first change: entries of one group share theirs. */
        for (e = first; e < end; e++) set->values[e] = rest_of(set, row + r, e, rows + at);
        for (e = first; e < end; e++) {
            rows[at + set->columns[e]] = set->values[e];
            weights[at + set->columns[e]] = 0.0f;
        }
    }
}

void outlier_mark(const struct outlier_set *set, const struct strip *s, uint8_t *exact) {
    memset(exact, 0, (size_t)s->n * GPTQ_LANES);
    for (int r = 0; r < s->n_rows; r++)
        for (uint32_t e = set->starts[s->row + r]; e < set->starts[s->row + r + 1]; e++)
            exact[(size_t)s->p->factor->place[set->columns[e]] * GPTQ_LANES + (size_t)r] = 1;
}

void outlier_take(struct outlier_set *set, struct strip *s) {
    for (int r = 0; r < s->n_rows; r++) {
        for (uint32_t e = set->starts[s->row + r]; e < set->starts[s->row + r + 1]; e++) {
            size_t place = (size_t)s->p->factor->place[set->columns[e]];
            size_t at = place * GPTQ_LANES + (size_t)r;
            float level = strip_level(s, (int)place, r);
            float beyond = fminf(fmaxf(s->q[at] - level, -65504.0f), 65504.0f);
            set->values[e] = f16_to_f32(f32_to_f16(beyond));
            s->q[at] = level + set->values[e];
        }
    }
}

int outlier_block(const struct outlier_set *set, void **ret, size_t *ret_n,
                  struct outliers_view *view, struct error *err) {
    uint32_t n = set->whole ? set->starts[1] : set->n; /* columns, or entries */
    size_t n_bytes = set->whole ? outliers_whole_bytes(set->rows, set->cols, n)
                                : outliers_bytes(set->rows, set->cols, n);
    void *block = aligned_alloc(OUTLIERS_ALIGN, n_bytes);
    if (!block) return error_set(err, -ENOMEM, "outliers: out of memory");
    memset(block, 0, n_bytes);
    if (set->whole)
        outliers_format_whole(view, block, set->rows, set->cols, n);
    else
        outliers_format(view, block, set->rows, set->cols, n);
    uint16_t *counts = (uint16_t *)(uintptr_t)view->counts;
    uint16_t *values = (uint16_t *)(uintptr_t)view->values;
    for (int r = 0; counts && r < set->rows; r++)
        counts[r] = (uint16_t)(set->starts[r + 1] - set->starts[r]);
    for (uint32_t e = 0; e < n; e++) outliers_put_column(view, e, set->columns[e]);
    for (uint32_t e = 0; e < set->n; e++) values[e] = f32_to_f16(set->values[e]);
    *ret = block;
    *ret_n = n_bytes;
    return 0;
}
