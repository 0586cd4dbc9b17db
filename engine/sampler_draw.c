#include "engine/sampler_state.h"

/* Selection works on keys: unsigned integers in the order of the floats they stand for. The
 * best by count or by weight are found digit by digit from the top, as in a radix sort that
 * only goes into the one bucket that matters: O(n) whatever the values are. */
enum { N_PASSES = 3 /* 11 + 11 + 10 bits */ };

/* The worst of the kept tokens: values above `value` stay, and the first n_equal of those that
 * are equal to it. */
struct cut {
    float value;
    int n_equal;
};

/* xoshiro256**. splitmix64 never gives four zeros in a row. */
static uint64_t next_random(uint64_t s[4]) {
    uint64_t five = s[1] * 5, result = (five << 7 | five >> 57) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

static uint32_t key_of(float value) {
    uint32_t bits;
    value += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float value_of(uint32_t key) {
    uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Histograms of the digit at `shift` of all keys that agree with `prefix` above it. */
static void count_digits(struct sampler_work *w, const float *values, int n, uint32_t prefix,
                         int shift, int width) {
    memset(w->sizes, 0, sizeof w->sizes);
    memset(w->weights, 0, sizeof w->weights);
    for (int i = 0; i < n; i++) {
        uint32_t key = key_of(values[i]);
        if ((uint64_t)key >> (shift + width) != (uint64_t)prefix >> (shift + width)) continue;
        uint32_t digit = key >> shift & ((1u << width) - 1);
        w->sizes[digit]++;
        w->weights[digit] += (double)values[i];
    }
}

/* The fewest best values that are `want` in number, or, by weight, whose sum reaches want. */
static struct cut select_best(struct sampler_work *w, const float *values, int n, double want,
                              bool by_weight) {
    uint32_t prefix = 0;
    double have = 0;
    int shift = 32;
    for (int pass = 0; pass < N_PASSES; pass++) {
        int width = shift < DIGIT_BITS ? shift : DIGIT_BITS;
        shift -= width;
        count_digits(w, values, n, prefix, shift, width);
        int digit = (1 << width) - 1, last = -1;
        for (; digit >= 0; digit--) {
            if (!w->sizes[digit]) continue;
            last = digit;
            double more = by_weight ? w->weights[digit] : w->sizes[digit];
            if (have + more >= want) break;
            have += more;
        }
        /* Rounding may leave the sum short of want: the worst bucket is then the one. */
        if (digit < 0 && last >= 0) have -= by_weight ? w->weights[last] : w->sizes[last];
        prefix |= (uint32_t)(last < 0 ? 0 : last) << shift;
    }
    struct cut cut = {.value = value_of(prefix), .n_equal = 1};
    double each = by_weight ? (double)cut.value : 1;
    int n_there = (int)w->sizes[prefix & ((1u << (32 - 2 * DIGIT_BITS)) - 1)];
    while (cut.n_equal < n_there && have + each * cut.n_equal < want) cut.n_equal++;
    return cut;
}

/* What is worse than the cut becomes `worst`. */
static void apply(struct sampler_work *w, struct cut cut, float worst) {
    for (int i = 0; i < w->n; i++) {
        if (w->values[i] > cut.value) continue;
        if (w->values[i] == cut.value && cut.n_equal-- > 0) continue;
        w->values[i] = worst;
    }
}

/* Turns logits into weights relative to the best one's 1 and returns their sum. */
static double weigh(struct sampler_work *w, float max, float temperature) {
    double total = 0;
    for (int i = 0; i < w->n; i++) {
        double x = ((double)w->values[i] - (double)max) / (double)temperature;
        w->values[i] = (float)exponential(x);
        total += (double)w->values[i];
    }
    return total;
}

static double sum_above(struct sampler_work *w, float least) {
    double total = 0;
    for (int i = 0; i < w->n; i++) {
        if (w->values[i] < least) w->values[i] = 0;
        total += (double)w->values[i];
    }
    return total;
}

static int draw(const struct sampler_work *w, double total, uint64_t random) {
    double target = (double)(random >> 11) * 0x1p-53 * total, sum = 0;
    int last = 0;
    for (int i = 0; i < w->n; i++) {
        if (w->values[i] <= 0) continue;
        sum += (double)w->values[i];
        last = i;
        if (sum > target) break;
    }
    return w->n < w->n_vocab ? w->ids[last] : last;
}

/* Leaves few more than the k best values, in the order of ids. The k-th best of the maxima has k values
 * at its height, so nothing below it is among the k best; what is left out would weigh nothing. */
static void shorten(struct sampler_work *w, int k) {
    if (k >= w->n_maxima) return;
    float least = select_best(w, w->maxima, w->n_maxima, k, false).value;
    w->n = 0;
    for (int i = 0; i < w->n_vocab; i++) {
        if (w->values[i] < least) continue;
        w->values[w->n] = w->values[i];
        w->ids[w->n++] = i;
    }
}

static double cut_by_weight(struct sampler_work *w, struct cut cut) {
    apply(w, cut, 0);
    return sum_above(w, 0);
}

static int finish(struct sampler *s, struct sampler_work *w, double total) {
    if (s->params.min_p > 0) total = sum_above(w, s->params.min_p);
    return draw(w, total, next_random(s->rng));
}

int sampler_draw(struct sampler *s, struct sampler_work *w, float max) {
    const struct sampler_params *p = &s->params;
    w->n = w->n_vocab;
    if (p->top_k > 0 && p->top_k < w->n_vocab) {
        shorten(w, p->top_k);
        apply(w, select_best(w, w->values, w->n, p->top_k, false), -INFINITY);
    }
    double total = weigh(w, max, p->temperature);
    if (p->top_p < 1)
        total = cut_by_weight(w, select_best(w, w->values, w->n, (double)p->top_p * total, true));
    return finish(s, w, total);
}

/* -- From a row in short --------------------------------------------------------------------- */

/* Sums of other exponentials are off by less than half of LEEWAY of the total. What is decided alike at both ends of
 * that is decided as by this sampler's own; all else is left to the whole row. Weights in the order of logits are in
 * order themselves but for a float's last bits: by TIE two are apart. */
static const double LEEWAY = 0x1p-16, TIE = 1 + 0x1p-20;
static const double UNIT = (double)(UINT64_C(1) << SAMPLER_SUM_BITS);
enum { MOST_VOCAB = 1 << 20 /* of which that holds */ };

static float logit_of(uint64_t rank) { return value_of((uint32_t)(rank >> 32)); }
static int32_t id_of(uint64_t rank) { return (int32_t) ~(uint32_t)rank; }

static double weight_of(const struct sampler *s, float logit, float max) {
    double x = ((double)logit - (double)max) / (double)s->params.temperature;
    return (double)(float)exponential(x);
}

/* The n best as the values, in the order of ids. */
static void take_best(struct sampler_work *w, const uint64_t *ranks, int n) {
    for (w->n = 0; w->n < n; w->n++) {
        int32_t id = id_of(ranks[w->n]);
        int at = w->n;
        for (; at > 0 && w->ids[at - 1] > id; at--) {
            w->ids[at] = w->ids[at - 1];
            w->values[at] = w->values[at - 1];
        }
        w->ids[at] = id;
        w->values[at] = logit_of(ranks[w->n]);
    }
}

static double sum_of(const struct sampler_short *row, int n_spans) {
    uint64_t sum = 0;
    for (int i = 0; i < n_spans; i++) sum += row->sums[i];
    return (double)sum;
}

static int spans_of(const struct sampler_work *w, const struct sampler_short *row) {
    return (w->n_vocab + row->span - 1) / row->span;
}

/* Of weights that sum up to `here`, those that reach top_p of the whole row's; false when it may be others. */
static bool find_cut(struct sampler_work *w, double want, double here, struct cut *ret) {
    double most = want * (1 + LEEWAY);
    if (!(here > most * TIE)) return false;
    *ret = select_best(w, w->values, w->n, most, true);
    struct cut other = select_best(w, w->values, w->n, want * (1 - LEEWAY), true);
    return other.value == ret->value && other.n_equal == ret->n_equal;
}

static bool draw_listed(struct sampler *s, struct sampler_work *w, const struct sampler_short *row,
                        int32_t *ret) {
    const struct sampler_params *p = &s->params;
    int n = row->n_ranks < w->n_vocab ? row->n_ranks : w->n_vocab;
    int k = p->top_k > 0 && p->top_k < w->n_vocab ? p->top_k : w->n_vocab;
    bool all = k <= n, cuts = p->top_p < 1; /* all: the rest weighs nothing */
    float max = logit_of(row->ranks[0]);
    struct cut cut = {.value = p->min_p};
    if (!all && cuts && (k < w->n_vocab || k > MOST_VOCAB)) return false;
    take_best(w, row->ranks, all ? k : n);
    double total = weigh(w, max, p->temperature);
    if (all && cuts) cut = select_best(w, w->values, w->n, (double)p->top_p * total, true);
    if (!all && cuts) {
        double whole = sum_of(row, spans_of(w, row)) / UNIT;
        if (!find_cut(w, (double)p->top_p * whole, total, &cut)) return false;
    }
    /* Nobody who is not listed may stay. */
    double worst = weight_of(s, logit_of(row->ranks[n - 1]), max);
    if (!all && !((double)cut.value > worst * TIE)) return false;
    if (cuts) total = cut_by_weight(w, cut);
    *ret = finish(s, w, total);
    return true;
}

static bool has_cuts(const struct sampler_params *p, int n_vocab) {
    return (p->top_k > 0 && p->top_k < n_vocab) || p->top_p < 1 || p->min_p > 0;
}

/* Where the next draw from a whole row will fall; units of the sums. */
static double next_target(const struct sampler *s, double total) {
    struct sampler ahead = *s;
    return (double)(next_random(ahead.rng) >> 11) * 0x1p-53 * total;
}

static bool find_span(const struct sampler *s, const struct sampler_work *w,
                      const struct sampler_short *row, int32_t *ret) {
    int n = spans_of(w, row);
    double total = sum_of(row, n), target = next_target(s, total), before = 0;
    if (w->n_vocab > MOST_VOCAB) return false;
    for (*ret = 0; *ret < n; ++*ret) {
        double after = before + (double)row->sums[*ret];
        if (after - LEEWAY * total > target) return *ret == 0 || before + LEEWAY * total <= target;
        before = after;
    }
    return false;
}

enum sampler_found sampler_short(struct sampler *s, struct sampler_work *w,
                                 const struct sampler_short *row, int32_t *ret) {
    *ret = id_of(row->ranks[0]);
    if (s->params.temperature == 0 || logit_of(row->ranks[0]) == -INFINITY) return SAMPLER_FOUND;
    if (has_cuts(&s->params, w->n_vocab))
        return draw_listed(s, w, row, ret) ? SAMPLER_FOUND : SAMPLER_NOT_FOUND;
    return find_span(s, w, row, ret) ? SAMPLER_IN_SPAN : SAMPLER_NOT_FOUND;
}

bool sampler_in_span(struct sampler *s, const struct sampler_work *w,
                     const struct sampler_short *row, int32_t span, const float *logits,
                     int32_t *ret) {
    double total = sum_of(row, spans_of(w, row)), target = next_target(s, total);
    double before = sum_of(row, span), leeway = LEEWAY * total;
    int first = span * row->span, n = w->n_vocab - first;
    if (n > row->span) n = row->span;
    for (int i = 0; i < n; i++) {
        float weight = (float)weight_of(s, tame(logits[i]), logit_of(row->ranks[0]));
        double after = before + (double)weight * UNIT;
        if (after - leeway > target) {
            *ret = first + i;
            if (*ret > 0 && before + leeway > target) return false;
            next_random(s->rng);
            return true;
        }
        before = after;
    }
    return false;
}
