/* sampler.h - turns one row of logits into one token id.
 *
 * Owns      a work area owns its memory; struct sampler is embedded in its sequence.
 * Borrows   logits, history and lists during the call; params.bias as long as the sampler is used.
 * Thread    engine; one work area serves all sequences of a thread.
 * Fails     never, save sampler_work_new(); sampler_check() has vetted the parameters.
 * Cost      O(n_vocab + n_history) time, no allocation, no sorting.
 *
 * Equal seed, parameters and logits give the equal token on every machine: the arithmetic is
 * IEEE double addition, multiplication and division in a fixed order, with an exponential of
 * its own. The generator is xoshiro256** (Blackman and Vigna), its state the first four
 * outputs of splitmix64 from the seed, and a draw its upper 53 bits; each call that is not
 * greedy uses one draw.
 *
 * A token is chosen in this order: bias added; repetition penalty (a positive logit divided by
 * it, a negative one multiplied) for tokens in the history; presence and frequency penalties
 * for generated tokens; banned tokens out; at temperature 0 the best token, the lowest id among
 * equals. Else logits divided by temperature; the top_k best stay; of those the fewest best
 * whose probability reaches top_p; of those the ones at least min_p times as probable as the
 * best; one is drawn, in the order of ids. Among equals lower ids count as better. NaN counts as
 * minus infinity; if nothing is left, the lowest id that is not banned is chosen. */
#ifndef ENGINE_SAMPLER_H
#define ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct sampler_work;

enum { SAMPLER_MAX_TOP = 20, SAMPLER_MAX_BIAS = 1024 };

/* Added to a logit. */
struct sampler_bias {
    int32_t id; /* out of the vocabulary: ignored */
    float value;
};

struct sampler_params {
    float temperature;               /* [0, 100]; 0 = greedy */
    float top_p;                     /* (0, 1]; 1 = off */
    float min_p;                     /* [0, 1); 0 = off */
    int top_k;                       /* 0 = off */
    float repetition_penalty;        /* [0.01, 100]; 1 = off */
    float presence_penalty;          /* [-2, 2]; once for a token that was generated */
    float frequency_penalty;         /* [-2, 2]; each time */
    const struct sampler_bias *bias; /* (n_bias) */
    int n_bias;                      /* up to SAMPLER_MAX_BIAS */
};

struct sampler {
    struct sampler_params params;
    uint64_t rng[4]; /* never all 0 */
};

/* What a choice depends on besides the sampler. */
struct sampler_call {
    const float *logits;    /* (n_vocab) of the work area */
    const int32_t *history; /* (n_history) tokens so far, the prompt first */
    size_t n_history, n_prompt;
    const int32_t *banned; /* (n_banned) never chosen */
    int n_banned;
    int n_top; /* best tokens wanted in the result, up to SAMPLER_MAX_TOP; -1: no logprobs */
};

/* Log probabilities are those of the model: of the logits as they came. At least -9999. */
struct sampler_result {
    int32_t id;
    float logprob; /* of id; 0 unless asked for */
    int rank; /* of id: 1 is the model's best, lower ids first among equals; 0 unless asked for */
    int n_top;
    int32_t top_ids[SAMPLER_MAX_TOP]; /* best first */
    float top_logprobs[SAMPLER_MAX_TOP];
};

/* A row in short, as backend_top() has it. */
struct sampler_short {
    const uint64_t *ranks; /* (n_ranks) best first */
    const uint64_t *sums;  /* of each `span` tokens */
    int n_ranks, span;
};
enum { SAMPLER_SUM_BITS = 40 };

enum sampler_found { SAMPLER_FOUND, SAMPLER_IN_SPAN, SAMPLER_NOT_FOUND };

/* Everything off: draws from the model's own distribution. */
void sampler_defaults(struct sampler_params *params);

/* Refuses values outside the ranges above; -EINVAL names the field in err. */
int sampler_check(const struct sampler_params *params, struct error *err);

void sampler_init(struct sampler *s, const struct sampler_params *params, uint64_t seed);

struct sampler_work *sampler_work_new(int n_vocab); /* NULL: out of memory */
void sampler_work_free(struct sampler_work *work);  /* NULL is allowed */
size_t sampler_work_bytes(int n_vocab);

/* What the model says about id: its log probability among logits (n_vocab), and the n_top best. */
void sampler_describe(struct sampler_work *w, const float *logits, int32_t id, int n_top,
                      struct sampler_result *ret);

/* Chooses ret->id in [0, n_vocab). */
void sampler_next(struct sampler *s, struct sampler_work *work, const struct sampler_call *call,
                  struct sampler_result *ret);

/* Chooses *ret as sampler_next() would from the whole row with no bias, penalties, banned tokens and log
 * probabilities; or finds that the token is one of span *ret, whose logits sampler_in_span() then wants; or that only
 * the row can tell. Other than FOUND, nothing was drawn. */
enum sampler_found sampler_short(struct sampler *s, struct sampler_work *work,
                                 const struct sampler_short *row, int32_t *ret);
/* logits: of the span. False: only the row can tell, nothing was drawn. */
bool sampler_in_span(struct sampler *s, const struct sampler_work *work,
                     const struct sampler_short *row, int32_t span, const float *logits,
                     int32_t *ret);

#endif
