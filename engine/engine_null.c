#include "engine/engine_null.h"

#include <errno.h>
#include <stdbool.h>

#include "engine/engine.h"
#include "engine/tokenizer.h"

static const int64_t SECOND_NS = 1000000000;
static const int64_t MILLISECOND_NS = 1000000;
/* Tokens that come late are made up for, so that the rate holds; not those of a stopped process. */
static const int64_t MOST_LATE_NS = 50000000;

static bool is_end(const struct engine_texts *t, int32_t id) {
    for (int i = 0; i < t->n_ends; i++)
        if (t->ends[i] == id) return true;
    return false;
}

/* How good an answer of these would look: a word after a space, letters, any printed text. */
static int visible(const struct engine_texts *t, int32_t id) {
    struct tokenizer_text piece = tokenizer_piece(t->tokenizer, id);
    bool space = piece.n > 2 && piece.data[0] == ' ', letters = true, printed = piece.n > 0;
    for (size_t i = space; i < piece.n; i++) {
        char c = piece.data[i];
        letters = letters && c >= 'a' && c <= 'z';
        printed = printed && c > ' ' && c <= '~';
    }
    if (!printed || tokenizer_is_special(t->tokenizer, id)) return 0;
    return !letters ? 1 : space ? 3 : 2;
}

static int32_t pick(const struct engine_texts *t, int vocab) {
    int32_t best = -1;
    int most = -1;
    for (int32_t id = 0; id < vocab && most < 3; id++) {
        int looks = t->tokenizer ? visible(t, id) : 0;
        if (looks <= most || is_end(t, id)) continue;
        most = looks;
        best = id;
    }
    return best < 0 ? 0 : best;
}

int engine_null_init(struct engine_null *ret, const struct engine_options *options,
                     const struct engine_texts *texts, int vocab, struct error *err) {
    struct engine_null n = {.token = options->null_token};
    if (n.token >= vocab)
        return error_set(err, -EINVAL, "null_token: %d is not in the vocabulary of %d", n.token,
                         vocab);
    if (n.token < 0) n.token = pick(texts, vocab);
    if (options->null_rate > 0) {
        double interval = (double)SECOND_NS / options->null_rate;
        n.interval_ns = interval < 1 ? 1 : (int64_t)interval;
    }
    *ret = n;
    return 0;
}

void engine_null_result(const struct engine_null *n, int32_t id, int n_top,
                        struct sampler_result *ret) {
    const float floor = -9999;
    *ret = (struct sampler_result){.id = id,
                                   .logprob = id == n->token ? 0 : floor,
                                   .rank = id == n->token ? 1 : 1 + id + (id < n->token)};
    if (n_top > 0) {
        ret->top_ids[0] = n->token;
        ret->n_top = 1;
    }
    for (int32_t other = 0; ret->n_top < n_top && ret->n_top < SAMPLER_MAX_TOP; other++) {
        if (other == n->token) continue;
        ret->top_ids[ret->n_top] = other;
        ret->top_logprobs[ret->n_top++] = floor;
    }
}

int64_t engine_null_due(const struct engine_null *n, int64_t due_ns, int64_t now_ns) {
    if (n->interval_ns == 0) return 0;
    if (due_ns == 0) return now_ns - now_ns % MILLISECOND_NS + n->interval_ns;
    int64_t oldest = now_ns - MOST_LATE_NS;
    return (due_ns > oldest ? due_ns : oldest) + n->interval_ns;
}
