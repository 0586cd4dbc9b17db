#include "engine/sequence.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sequence_prompt.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

static bool reports_tokens(const struct sequence *s) {
    return s->request->n_logprobs >= 0 || s->request->return_tokens || !s->shape->tokenizer;
}

static int init_stops(struct sequence *s, struct error *err) {
    size_t lengths[ENGINE_MAX_STOPS];
    const char *strings[ENGINE_MAX_STOPS];
    int n = s->request->n_stops;
    for (int i = 0; i < n; i++) {
        strings[i] = s->request->stops[i];
        lengths[i] = strlen(strings[i]);
    }
    int r = stop_init(&s->stop, strings, lengths, n, err);
    s->stop.keep = s->request->keep_stop;
    return r;
}

static int init_ends(struct sequence *s, struct error *err) {
    const struct engine_request *request = s->request;
    int n_model = request->ignore_eos ? 0 : s->shape->n_ends, n = n_model + request->n_stop_ids;
    if (n == 0) return 0;
    s->ends = malloc((size_t)n * sizeof *s->ends);
    if (!s->ends) return error_set(err, -ENOMEM, "sequence: out of memory");
    for (int i = 0; i < n; i++)
        s->ends[i] = i < n_model ? s->shape->ends[i] : request->stop_ids[i - n_model];
    s->n_ends = n;
    return 0;
}

static int check_prompt(const struct sequence *s, struct error *err) {
    const struct sequence_shape *shape = s->shape;
    if (s->n_prompt == 0 && s->request->task != ENGINE_TOKENIZE)
        return error_set(err, -EINVAL, "the prompt is empty");
    for (int i = 0; i < s->n_prompt; i++)
        if (s->tokens[i] < 0 || s->tokens[i] >= shape->vocab)
            return error_set(err, -EINVAL, "token %d of the prompt is %d, the vocabulary has %d", i,
                             s->tokens[i], shape->vocab);
    return 0;
}

int sequence_new(struct sequence **ret, const struct sequence_shape *shape,
                 struct engine_request *request, struct error *err) {
    struct sequence *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, -ENOMEM, "sequence: out of memory");
    s->shape = shape;
    s->request = request;
    s->stop_id = -1;
    s->detok.skip_special = !request->keep_special;
    sampler_init(&s->sampler, &request->sampling, request->seed);
    int r = init_stops(s, err);
    if (r < 0) goto fail;
    r = init_ends(s, err);
    if (r < 0) goto fail;
    r = sequence_prompt_make(s, err);
    if (r < 0) goto fail;
    r = check_prompt(s, err);
    if (r < 0) goto fail;
    int room = shape->context - s->n_prompt;
    if (request->max_tokens > 0 && request->max_tokens < room) room = request->max_tokens;
    s->n_max = s->n_prompt + (sequence_is_prompt(s) ? 0 : room);
    *ret = s;
    return 0;
fail:
    s->request = NULL; /* the caller's still */
    sequence_free(s);
    return r;
}

void sequence_free(struct sequence *s) {
    if (!s) return;
    engine_request_free(s->request);
    engine_event_free(s->last);
    stop_deinit(&s->stop);
    buf_free(&s->piece);
    buf_free(&s->text);
    free(s->reports);
    free(s->tokens);
    free(s->ends);
    engine_event_free(s->scores);
    free(s->pooled);
    draft_free(&s->draft);
    free(s);
}

static bool is_end(const struct sequence *s, int32_t id) {
    for (int i = 0; i < s->n_ends; i++)
        if (s->ends[i] == id) return true;
    return false;
}

int sequence_n_top(const struct sequence *s) {
    int n = s->request->n_logprobs;
    return n < 0 && reports_tokens(s) ? 0 : n;
}

bool sequence_takes_short(const struct sequence *s) {
    const struct sampler_params *p = &s->sampler.params;
    return p->repetition_penalty == 1 && p->presence_penalty == 0 && p->frequency_penalty == 0 &&
           p->n_bias == 0 && sequence_n_top(s) < 0 &&
           sequence_generated(s) >= s->request->min_tokens;
}

bool sequence_takes_best(const struct sequence *s) {
    return s->sampler.params.temperature == 0 && sequence_takes_short(s);
}

int sequence_sample(struct sequence *s, struct sampler_work *work, const float *logits) {
    struct sampler_call call = {
        .logits = logits,
        .history = s->tokens,
        .n_history = (size_t)s->n_tokens,
        .n_prompt = (size_t)s->n_prompt,
        .banned = s->ends,
        .n_banned = sequence_generated(s) < s->request->min_tokens ? s->n_ends : 0,
        .n_top = sequence_n_top(s),
    };
    struct sampler_result token;
    sampler_next(&s->sampler, work, &call, &token);
    return sequence_push(s, &token);
}

static int keep_token(struct sequence *s, int32_t id) {
    if (s->n_tokens == s->capacity) {
        int capacity = s->capacity + s->capacity / 2 + 64;
        int32_t *tokens = realloc(s->tokens, (size_t)capacity * sizeof *tokens);
        if (!tokens) return -ENOMEM;
        s->tokens = tokens;
        s->capacity = capacity;
    }
    s->tokens[s->n_tokens++] = id;
    return 0;
}

struct engine_token sequence_token(const struct sequence *s, const struct sampler_result *token) {
    struct engine_token t = {.id = token->id,
                             .hidden = s->detok.skip_special && s->shape->tokenizer &&
                                       tokenizer_is_special(s->shape->tokenizer, token->id),
                             .logprob = token->logprob,
                             .rank = token->rank,
                             .n_top = token->n_top};
    memcpy(t.top_ids, token->top_ids, sizeof t.top_ids);
    memcpy(t.top_logprobs, token->top_logprobs, sizeof t.top_logprobs);
    return t;
}

static int report(struct sequence *s, const struct sampler_result *token) {
    if (s->n_reports == s->reports_capacity) {
        int capacity = s->reports_capacity + s->reports_capacity / 2 + 4;
        struct sequence_token *reports = realloc(s->reports, (size_t)capacity * sizeof *reports);
        if (!reports) return -ENOMEM;
        s->reports = reports;
        s->reports_capacity = capacity;
    }
    s->reports[s->n_reports++] = (struct sequence_token){.at = s->n_released + s->stop.n_held,
                                                         .token = sequence_token(s, token)};
    return 0;
}

/* Passes piece on to the stop strings. Returns 1 when one of them ended the text. */
static int release_piece(struct sequence *s) {
    size_t before = s->text.len;
    int r = stop_push(&s->stop, s->piece.data ? s->piece.data : "", s->piece.len, &s->text);
    s->piece.len = 0;
    s->n_released += s->text.len - before;
    return r;
}

static void make_ready(struct sequence *s) {
    bool all = s->detok.n_held == 0 && s->stop.n_held == 0 && s->stop.matched < 0;
    while (s->n_ready < s->n_reports && (all || s->reports[s->n_ready].at < s->n_released))
        s->n_ready++;
}

int sequence_end(struct sequence *s, enum engine_finish finish) {
    if (s->ended) return 0;
    s->ended = true;
    s->finish = finish;
    int r = detok_flush(&s->detok, &s->piece);
    if (r >= 0) r = release_piece(s);
    if (r == 0) {
        size_t before = s->text.len;
        r = stop_flush(&s->stop, &s->text);
        s->n_released += s->text.len - before;
    } else if (r == 1 && finish == FINISH_LENGTH) {
        s->finish = FINISH_STOP;
    }
    make_ready(s);
    return r < 0 ? r : 0;
}

int sequence_push(struct sequence *s, const struct sampler_result *token) {
    int r = keep_token(s, token->id);
    if (r < 0) return r;
    bool end = is_end(s, token->id);
    if (end) s->stop_id = token->id;
    if (end && !s->request->keep_stop) return sequence_end(s, FINISH_STOP);
    if (reports_tokens(s)) r = report(s, token);
    if (r == 0 && s->shape->tokenizer)
        r = detok_push(&s->detok, s->shape->tokenizer, token->id, &s->piece);
    if (r >= 0) r = release_piece(s);
    if (r < 0) return r;
    if (r == 1) {
        s->ended = true;
        s->finish = FINISH_STOP;
    }
    make_ready(s);
    if (end) return sequence_end(s, FINISH_STOP);
    return !s->ended && s->n_tokens == s->n_max ? sequence_end(s, FINISH_LENGTH) : 0;
}

void sequence_taken(struct sequence *s) {
    s->text.len = 0;
    s->n_reports -= s->n_ready;
    if (s->n_reports > 0)
        memmove(s->reports, s->reports + s->n_ready, (size_t)s->n_reports * sizeof *s->reports);
    s->n_ready = 0;
}
