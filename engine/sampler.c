#include "engine/sampler_state.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/splitmix.h"
#include "kernels/error.h"

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

void sampler_init(struct sampler *s, const struct sampler_params *params, uint64_t seed) {
    s->params = *params;
    for (int i = 0; i < 4; i++) s->rng[i] = splitmix_next(&seed);
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
        id = sampler_draw(s, w, w->values[id]);
    ret->id = id;
    if (call->n_top < 0) return;
    ret->logprob = logprob(tame(call->logits[id]), log_sum);
    ret->rank = rank_of(call->logits, w->n_vocab, id);
}
