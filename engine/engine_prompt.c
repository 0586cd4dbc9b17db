#include "engine/engine_prompt.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "engine/engine_state.h"
#include "engine/model.h"
#include "engine/source.h"

/* Positions [from, to) of a share, in slices of what the buffers hold. */
struct slice {
    int32_t *rows; /* (n) of the batch */
    int position, n;
};

static bool next_slice(struct engine *e, struct slice *slice, int first, int to) {
    slice->position += slice->n;
    slice->n = to - slice->position;
    if (slice->n <= 0) return false;
    if (!e->model) return true; /* nothing will be read */
    if (slice->n > e->n_logit_rows) slice->n = e->n_logit_rows;
    slice->rows = e->rows;
    for (int i = 0; i < slice->n; i++) e->rows[i] = first + slice->position + i;
    return true;
}

/* -- Scores ---------------------------------------------------------------------------------- */

static struct engine_event *new_scores(const struct sequence *seq) {
    struct engine_event *event = engine_mail_event(0, seq->n_prompt);
    if (!event) return NULL;
    struct sampler_result first = {.id = seq->tokens[0], .logprob = NAN};
    event->kind = ENGINE_PROMPT;
    event->ticket = seq->ticket;
    event->tag = seq->request->tag;
    event->n_prompt = seq->n_prompt;
    event->tokens[event->n_tokens++] = sequence_token(seq, &first);
    return event;
}

/* The logits of a position score the token after it. */
static void score(struct engine *e, struct sequence *seq, const float *logits) {
    struct engine_event *event = seq->scores;
    int32_t id = seq->tokens[event->n_tokens];
    int n_top = seq->request->n_prompt_logprobs;
    struct sampler_result result;
    if (e->options.null)
        engine_null_result(&e->null, id, n_top, &result);
    else
        sampler_describe(e->work, logits, id, n_top, &result);
    event->tokens[event->n_tokens++] = sequence_token(seq, &result);
}

/* Scores what the positions before `end` tell, starting at the share's first. */
static int score_share(struct engine *e, struct sequence *seq, int first, int end,
                       struct error *err) {
    struct slice slice = {.position = seq->scores->n_tokens - 1};
    if (end > seq->n_prompt - 1) end = seq->n_prompt - 1;
    while (next_slice(e, &slice, first, end)) {
        int r = e->model ? model_logits(e->model, e->logits, slice.rows, slice.n, err) : 0;
        if (r < 0) return r;
        for (int i = 0; i < slice.n; i++)
            score(e, seq, e->logits + (e->model ? (size_t)i * (size_t)e->shape.vocab : 0));
    }
    if (seq->scores->n_tokens == seq->n_prompt) {
        engine_mail_post(&e->mail, seq->scores);
        seq->scores = NULL;
        seq->scored = true;
    }
    return 0;
}

/* -- Hidden states --------------------------------------------------------------------------- */

static int width_of(const struct engine *e) { return source_config(e->src)->embed_dim; }

static int pool_share(struct engine *e, struct sequence *seq, int first, int end,
                      struct error *err) {
    struct slice slice = {.position = seq->n_pooled};
    int width = width_of(e);
    if (seq->request->pooling == POOLING_LAST && slice.position < seq->n_prompt - 1)
        slice.position = end < seq->n_prompt ? end : seq->n_prompt - 1;
    while (e->model && next_slice(e, &slice, first, end)) {
        int r = model_hidden(e->model, e->hidden, slice.rows, slice.n, err);
        if (r < 0) return r;
        for (int i = 0; i < slice.n; i++)
            for (int k = 0; k < width; k++)
                seq->pooled[k] += (double)e->hidden[(size_t)i * (size_t)width + (size_t)k];
    }
    seq->n_pooled = end;
    return 0;
}

int engine_prompt_pool(struct engine *e, struct sequence *seq) {
    const struct engine_request *request = seq->request;
    int width = width_of(e);
    float *vector = malloc((size_t)width * sizeof *vector);
    if (!vector) return -ENOMEM;
    if (!e->model) seq->pooled[0] = seq->n_prompt;
    double scale = request->pooling == POOLING_MEAN || !e->model ? 1.0 / seq->n_prompt : 1;
    double squares = 0;
    for (int k = 0; k < width; k++) {
        seq->pooled[k] *= scale;
        squares += seq->pooled[k] * seq->pooled[k];
    }
    scale = request->normalize && squares > 0 ? 1 / sqrt(squares) : 1;
    for (int k = 0; k < width; k++) vector[k] = (float)(seq->pooled[k] * scale);
    seq->last->vector = vector;
    seq->last->n_vector = width;
    return 0;
}

/* -- A share --------------------------------------------------------------------------------- */

/* What gathers the results; false without memory. */
static bool ready(const struct engine *e, struct sequence *seq, bool scores, bool pools) {
    if (scores && !seq->scores) seq->scores = new_scores(seq);
    if (pools && !seq->pooled) seq->pooled = calloc((size_t)width_of(e), sizeof *seq->pooled);
    return (!scores || seq->scores) && (!pools || seq->pooled);
}

int engine_prompt_read(struct engine *e, struct sequence *seq, const struct scheduler_share *share,
                       int first, struct error *err) {
    int end = share->start + share->n, r = 0;
    bool scores = seq->request->n_prompt_logprobs >= 0 && !seq->scored;
    bool pools = seq->request->task == ENGINE_EMBED && end > seq->n_pooled;
    if (!scores && !pools) return 0;
    if (!ready(e, seq, scores, pools)) {
        engine_fail(e, seq, -ENOMEM, "out of memory");
        return 0;
    }
    first -= share->start;
    if (scores) r = score_share(e, seq, first, end, err);
    if (r == 0 && pools) r = pool_share(e, seq, first, end, err);
    return r;
}
