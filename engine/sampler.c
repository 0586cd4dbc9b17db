#include "engine/sampler.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

/* Selection works on keys: unsigned integers in the order of the floats they stand for. The
 * best by count or by weight are found digit by digit from the top, as in a radix sort that
 * only goes into the one bucket that matters: O(n) whatever the values are. */
enum {
    DIGIT_BITS = 11,
    N_DIGITS = 1 << DIGIT_BITS,
    N_PASSES = 3, /* 11 + 11 + 10 bits */
    SPAN = 32     /* values that share a maximum */
};

struct sampler_work {
    int n_vocab;
    float *values; /* (n_vocab) logits after penalties, then weights */
    int n;         /* of them, in use while drawing; ids: whose they are where that is not all */
    int32_t *ids;  /* (n_vocab) */
    float *maxima; /* (n_maxima) of SPAN values each */
    int n_maxima;
    uint32_t *counts; /* (n_vocab) of history: bit 0 seen, the rest times generated; 0 between
                         calls */
    uint32_t sizes[N_DIGITS];
    double weights[N_DIGITS];
};

/* The worst of the kept tokens: values above `value` stay, and the first n_equal of those that
 * are equal to it. */
struct cut {
    float value;
    int n_equal;
};

void sampler_defaults(struct sampler_params *params) {
    *params = (struct sampler_params){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

static int check_range(const char *name, float value, float low, float high, struct error *err) {
    if (value >= low && value <= high) return 0;
    return error_set(err, -EINVAL, "%s is %g, must be in %g..%g", name, (double)value, (double)low,
                     (double)high);
}

int sampler_check(const struct sampler_params *p, struct error *err) {
    const struct {
        const char *name;
        float value, low, high;
    } ranges[] = {
        {"temperature", p->temperature, 0, 100},
        {"repetition_penalty", p->repetition_penalty, 0.01f, 100},
        {"presence_penalty", p->presence_penalty, -2, 2},
        {"frequency_penalty", p->frequency_penalty, -2, 2},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        int r = check_range(ranges[i].name, ranges[i].value, ranges[i].low, ranges[i].high, err);
        if (r < 0) return r;
    }
    if (!(p->top_p > 0 && p->top_p <= 1))
        return error_set(err, -EINVAL, "top_p is %g, must be above 0 and at most 1",
                         (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p < 1))
        return error_set(err, -EINVAL, "min_p is %g, must be at least 0 and below 1",
                         (double)p->min_p);
    if (p->top_k < 0) return error_set(err, -EINVAL, "top_k is %d, must be 0 or more", p->top_k);
    if (p->n_bias < 0 || p->n_bias > SAMPLER_MAX_BIAS)
        return error_set(err, -EINVAL, "logit_bias has %d entries, limit %d", p->n_bias,
                         SAMPLER_MAX_BIAS);
    for (int i = 0; i < p->n_bias; i++) {
        int r = check_range("logit_bias", p->bias[i].value, -100, 100, err);
        if (r < 0) return r;
    }
    return 0;
}

static uint64_t splitmix64(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

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

void sampler_init(struct sampler *s, const struct sampler_params *params, uint64_t seed) {
    s->params = *params;
    for (int i = 0; i < 4; i++) s->rng[i] = splitmix64(&seed);
}

struct sampler_work *sampler_work_new(int n_vocab) {
    struct sampler_work *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    w->n_vocab = n_vocab;
    w->values = calloc((size_t)n_vocab + 1, sizeof *w->values);
    w->counts = calloc((size_t)n_vocab + 1, sizeof *w->counts);
    w->ids = calloc((size_t)n_vocab + 1, sizeof *w->ids);
    w->maxima = calloc((size_t)n_vocab / SPAN + 1, sizeof *w->maxima);
    if (w->values && w->counts && w->ids && w->maxima) return w;
    sampler_work_free(w);
    return NULL;
}

size_t sampler_work_bytes(int n_vocab) {
    const struct sampler_work *w = NULL;
    return sizeof *w + ((size_t)n_vocab / SPAN + 1) * sizeof *w->maxima +
           ((size_t)n_vocab + 1) * (sizeof *w->values + sizeof *w->counts + sizeof *w->ids);
}

void sampler_work_free(struct sampler_work *w) {
    if (!w) return;
    free(w->values);
    free(w->counts);
    free(w->ids);
    free(w->maxima);
    free(w);
}

/* e^x for x <= 0, to 11 digits; weights are floats. The C library's differs in last bits between
 * machines, and with it which token a draw meets. x = k ln 2 + r with |r| <= ln 2 / 2, ln 2 in
 * two parts of which the first times k is exact; e^r by its series up to r^9 / 9!. */
static double exponential(double x) {
    static const double inverse_factorial[] = {
        1,         1,         1.0 / 2,    1.0 / 6,     1.0 / 24,
        1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
    };
    if (!(x > -700)) return 0;
    double k = floor(x * 1.44269504088896338700e+00 + 0.5);
    double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    double sum = inverse_factorial[9];
    for (int i = 8; i >= 0; i--) sum = sum * r + inverse_factorial[i];
    uint64_t bits = (uint64_t)(1023 + (int64_t)k) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* NaN becomes minus infinity, plus infinity the largest float: differences stay numbers. */
static float tame(float x) { return x != x ? -INFINITY : x > FLT_MAX ? FLT_MAX : x; }

static void load(struct sampler_work *w, const float *logits) {
    for (int i = 0; i < w->n_vocab; i++) w->values[i] = tame(logits[i]);
}

/* The largest of each SPAN values, and of all. */
static float find_maxima(struct sampler_work *w) {
    float most = -INFINITY;
    w->n_maxima = 0;
    for (int i = 0; i < w->n_vocab; i += SPAN) {
        float m[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        int end = w->n_vocab - i < SPAN ? w->n_vocab : i + SPAN, k = i;
        for (; k + 4 <= end; k += 4)
            for (int j = 0; j < 4; j++) m[j] = w->values[k + j] > m[j] ? w->values[k + j] : m[j];
        for (; k < end; k++) m[0] = w->values[k] > m[0] ? w->values[k] : m[0];
        for (int j = 1; j < 4; j++) m[0] = m[j] > m[0] ? m[j] : m[0];
        w->maxima[w->n_maxima++] = m[0];
        most = m[0] > most ? m[0] : most;
    }
    return most;
}

/* The first of the best. */
static int best(struct sampler_work *w) {
    float most = find_maxima(w);
    int i = 0;
    while (w->maxima[i / SPAN] < most) i += SPAN;
    while (w->values[i] < most) i++;
    return i;
}

static bool is_id(const struct sampler_work *w, int32_t id) { return id >= 0 && id < w->n_vocab; }

static void penalize(struct sampler_work *w, const struct sampler_params *p, int32_t id) {
    uint32_t times = w->counts[id] >> 1;
    float x = w->values[id];
    w->counts[id] = 0;
    x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    if (times) x -= p->presence_penalty + p->frequency_penalty * (float)times;
    w->values[id] = tame(x);
}

static void adjust(struct sampler_work *w, const struct sampler_params *p,
                   const struct sampler_call *call) {
    for (int i = 0; i < p->n_bias; i++)
        if (is_id(w, p->bias[i].id)) w->values[p->bias[i].id] += p->bias[i].value;
    bool penalties =
        p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
    for (size_t i = 0; penalties && i < call->n_history; i++)
        if (is_id(w, call->history[i]))
            w->counts[call->history[i]] =
                (w->counts[call->history[i]] + (i >= call->n_prompt ? 2 : 0)) | 1;
    for (size_t i = 0; penalties && i < call->n_history; i++)
        if (is_id(w, call->history[i]) && w->counts[call->history[i]])
            penalize(w, p, call->history[i]);
    for (int i = 0; i < call->n_banned; i++)
        if (is_id(w, call->banned[i])) w->values[call->banned[i]] = -INFINITY;
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

static int sample(struct sampler *s, struct sampler_work *w, float max) {
    const struct sampler_params *p = &s->params;
    w->n = w->n_vocab;
    if (p->top_k > 0 && p->top_k < w->n_vocab) {
        shorten(w, p->top_k);
        apply(w, select_best(w, w->values, w->n, p->top_k, false), -INFINITY);
    }
    double total = weigh(w, max, p->temperature);
    if (p->top_p < 1) {
        apply(w, select_best(w, w->values, w->n, (double)p->top_p * total, true), 0);
        total = sum_above(w, 0);
    }
    if (p->min_p > 0) total = sum_above(w, p->min_p);
    return draw(w, total, next_random(s->rng));
}

/* When no logit is a finite number, every token is as good. */
static int first_allowed(const struct sampler_work *w, const struct sampler_call *call) {
    for (int id = 0; id < w->n_vocab; id++) {
        bool banned = false;
        for (int i = 0; i < call->n_banned; i++) banned = banned || call->banned[i] == id;
        if (!banned) return id;
    }
    return 0;
}

static float logprob(float logit, double log_sum) {
    double x = (double)logit - log_sum;
    return x > -9999 ? (float)x : -9999.0f;
}

/* Of w->values as loaded: log of the sum of exponentials, and the n best in order. */
static double describe(struct sampler_work *w, int n, struct sampler_result *ret) {
    double max = (double)w->values[best(w)], sum = 0;
    float logits[SAMPLER_MAX_TOP];
    for (int i = 0; i < w->n_vocab; i++) {
        float x = w->values[i];
        if (x == -INFINITY) continue;
        sum += exponential((double)x - max);
        if (n == 0 || (ret->n_top == n && x <= logits[n - 1])) continue;
        int at = ret->n_top < n ? ret->n_top++ : n - 1;
        for (; at > 0 && logits[at - 1] < x; at--) {
            logits[at] = logits[at - 1];
            ret->top_ids[at] = ret->top_ids[at - 1];
        }
        logits[at] = x;
        ret->top_ids[at] = i;
    }
    double log_sum = sum > 0 ? max + log(sum) : 0;
    for (int i = 0; i < ret->n_top; i++) ret->top_logprobs[i] = logprob(logits[i], log_sum);
    return log_sum;
}

/* Where id stands among the model's tokens. */
static int rank_of(const float *logits, int n, int32_t id) {
    float x = tame(logits[id]);
    int before = 0;
    for (int i = 0; i < id; i++) before += tame(logits[i]) >= x;
    for (int i = id + 1; i < n; i++) before += tame(logits[i]) > x;
    return 1 + before;
}

void sampler_describe(struct sampler_work *w, const float *logits, int32_t id, int n_top,
                      struct sampler_result *ret) {
    ret->n_top = 0;
    load(w, logits);
    double log_sum = describe(w, n_top < SAMPLER_MAX_TOP ? n_top : SAMPLER_MAX_TOP, ret);
    ret->id = id;
    ret->logprob = logprob(w->values[id], log_sum);
    ret->rank = rank_of(logits, w->n_vocab, id);
}

void sampler_next(struct sampler *s, struct sampler_work *w, const struct sampler_call *call,
                  struct sampler_result *ret) {
    double log_sum = 0;
    ret->n_top = 0;
    ret->logprob = 0;
    ret->rank = 0;
    load(w, call->logits);
    if (call->n_top >= 0)
        log_sum = describe(w, call->n_top < SAMPLER_MAX_TOP ? call->n_top : SAMPLER_MAX_TOP, ret);
    adjust(w, &s->params, call);
    int id = best(w);
    if (w->values[id] == -INFINITY)
        id = first_allowed(w, call);
    else if (s->params.temperature > 0)
        id = sample(s, w, w->values[id]);
    ret->id = id;
    if (call->n_top < 0) return;
    ret->logprob = logprob(tame(call->logits[id]), log_sum);
    ret->rank = rank_of(call->logits, w->n_vocab, id);
}
