#include "engine/engine_state.h"

#include <errno.h>
#include <string.h>

#include "engine/engine_prompt.h"
#include "engine/kv.h"
#include "engine/model.h"

/* -- Events ---------------------------------------------------------------------------------- */

void engine_describe(struct engine_event *event, const struct sequence *seq) {
    event->ticket = seq->ticket;
    event->tag = seq->request->tag;
    event->n_prompt = seq->n_prompt;
    event->n_generated = sequence_generated(seq);
    event->n_cached = seq->n_cached;
    event->queued_ns = seq->queued_ns;
    event->first_ns = seq->first_ns;
}

int engine_post_text(struct engine *e, struct sequence *seq) {
    if (seq->text.len == 0 && seq->n_ready == 0) return 0;
    struct engine_event *event = engine_mail_event(seq->text.len, seq->n_ready);
    if (!event) return -ENOMEM;
    event->kind = ENGINE_TEXT;
    engine_describe(event, seq);
    event->text_len = seq->text.len;
    if (seq->text.len > 0) memcpy(event->text, seq->text.data, seq->text.len);
    event->n_tokens = seq->n_ready;
    for (int i = 0; i < seq->n_ready; i++) event->tokens[i] = seq->reports[i].token;
    sequence_taken(seq);
    engine_mail_post(&e->mail, event);
    return 0;
}

/* The slot and its blocks are free before the caller can hear of the end. */
static void post_last(struct engine *e, struct sequence *seq, enum engine_event_kind kind) {
    struct engine_event *last = seq->last;
    seq->last = NULL;
    last->kind = kind;
    engine_describe(last, seq);
    last->stop = seq->stop.matched;
    last->stop_id = seq->stop_id;
    scheduler_remove(e->scheduler, seq->slot);
    e->sequences[seq->place] = NULL;
    e->owners[seq->slot] = NULL;
    sequence_free(seq);
    e->null.next_ns = 0; /* another may start */
    engine_mail_post(&e->mail, last);
}

void engine_fail(struct engine *e, struct sequence *seq, int code, const char *text) {
    struct engine_event *last = seq->last;
    last->code = code;
    last->text_len = strlen(text);
    memcpy(last->text, text, last->text_len);
    e->stats.failures++;
    post_last(e, seq, ENGINE_FAILED);
}

const char *engine_limit_text(enum scheduler_limit limit) {
    static const char *const texts[] = {
        [LIMIT_QUEUE] = "the time limit of the queue has passed before the first step",
        [LIMIT_FIRST] = "the time limit of the first token has passed before it came",
        [LIMIT_TOTAL] = "the time limit of the whole request has passed before its end",
    };
    return texts[limit];
}

void engine_expire(struct engine *e, struct sequence *seq, enum scheduler_limit limit) {
    e->stats.timeouts++;
    engine_fail(e, seq, -ETIMEDOUT, engine_limit_text(limit));
}

void engine_finish(struct engine *e, struct sequence *seq, enum engine_finish finish) {
    int r = sequence_end(seq, finish);
    if (r == 0) r = engine_post_text(e, seq);
    if (r < 0) {
        engine_fail(e, seq, r, "out of memory");
        return;
    }
    seq->last->finish = seq->finish;
    if (seq->finish == FINISH_CANCELLED)
        e->stats.cancelled++;
    else
        e->stats.finished++;
    post_last(e, seq, ENGINE_DONE);
}

/* -- The step -------------------------------------------------------------------------------- */

static int widest_table(const struct scheduler_share *shares, int n) {
    int widest = 0;
    for (int i = 0; i < n; i++)
        if (shares[i].n_blocks > widest) widest = shares[i].n_blocks;
    return widest;
}

/* The sequence's tokens of this step: known ones, then guesses. Returns how many. */
static int copy_tokens(const struct sequence *seq, const struct scheduler_share *share,
                       int32_t *tokens) {
    memcpy(tokens, seq->tokens + share->start, (size_t)share->n * sizeof *tokens);
    memcpy(tokens + share->n, seq->guesses, (size_t)share->n_drafts * sizeof *tokens);
    return share->n + share->n_drafts;
}

static struct batch build_batch(struct engine *e, int n_shares) {
    struct batch b = {.tokens = e->tokens,
                      .positions = e->positions,
                      .seqs = e->seqs,
                      .blocks = e->blocks,
                      .n_seqs = n_shares,
                      .max_blocks = widest_table(e->shares, n_shares)};
    for (int i = 0; i < n_shares; i++) {
        const struct scheduler_share *share = &e->shares[i];
        const struct sequence *seq = e->owners[share->slot];
        e->firsts[i] = b.n_tokens;
        int n = copy_tokens(seq, share, e->tokens + b.n_tokens);
        for (int j = 0; j < n; j++) {
            e->positions[b.n_tokens + j] = share->start + j;
            e->seqs[b.n_tokens + j] = i;
        }
        b.n_tokens += n;

        int32_t *row = e->blocks + (size_t)i * (size_t)b.max_blocks;
        memcpy(row, share->blocks, (size_t)share->n_blocks * sizeof *row);
        /* Never read, but a back end may copy the table whole. */
        for (int j = share->n_blocks; j < b.max_blocks; j++) row[j] = 0;
    }
    return b;
}

/* -- Its results ----------------------------------------------------------------------------- */

enum { MOST_PAUSE = 31 /* tokens */ };

/* What of the rows was read: all; in short, with e->logits for what that does not tell; the best tokens. */
enum reading_form { READ_ALL, READ_SHORT, READ_BEST };

/* Reads logits in the order of shares, as many rows at a time as there is room for. */
struct reading {
    int n_shares;
    int share, row;     /* the next to be read */
    int loaded, n_used; /* rows that were read, and those of them that have been used */
    enum reading_form form;
};

/* The rows of a share: its last token, and each guess. */
static int rows_of(const struct scheduler_share *share) {
    return share->samples ? 1 + share->n_drafts : 0;
}

static int read_rows(struct engine *e, struct reading *r, struct error *err) {
    struct top_call call = {
        .n_rows = r->loaded, .temperatures = e->heats, .ranks = e->ranks, .sums = e->sums};
    if (r->form == READ_BEST) return model_best(e->model, e->best, e->rows, r->loaded, err);
    if (r->form == READ_SHORT) return model_top(e->model, &call, e->rows, err);
    return model_logits(e->model, e->logits, e->rows, r->loaded, err);
}

static int load_rows(struct engine *e, struct reading *r, struct error *err) {
    int n = 0, n_best = 0, n_short = 0;
    while (r->share < r->n_shares && n < e->n_logit_rows) {
        const struct scheduler_share *share = &e->shares[r->share];
        const struct sequence *seq = e->owners[share->slot];
        if (!seq || sequence_is_prompt(seq) || r->row == rows_of(share)) {
            r->share++;
            r->row = 0;
        } else {
            float heat = seq->sampler.params.temperature;
            n_best += sequence_takes_best(seq);
            n_short += sequence_takes_short(seq);
            e->heats[n] = heat > 0 ? heat : 1;
            e->rows[n++] = e->firsts[r->share] + share->n - 1 + r->row++;
        }
    }
    r->loaded = n;
    r->n_used = 0;
    r->form = READ_ALL;
    if (n_short > 0 && model_can_shorten(e->model)) r->form = READ_SHORT;
    if (n_best == n && model_can_choose(e->model)) r->form = READ_BEST;
    return read_rows(e, r, err);
}

/* *ret: the row's place. */
static int next_row(struct engine *e, struct reading *r, int *ret, struct error *err) {
    *ret = 0;
    if (!e->model) return 0;
    int status = r->n_used == r->loaded ? load_rows(e, r, err) : 0;
    if (status == 0) *ret = r->n_used++;
    return status;
}

_Static_assert((int)SAMPLER_SUM_BITS == (int)BACKEND_SUM_BITS, "units of sums");

/* A token from the row in short, where that tells it. */
static int find_token(struct engine *e, struct sequence *seq, int row, bool *found, int32_t *ret,
                      struct error *err) {
    const struct sampler_short in = {e->ranks + (size_t)row * BACKEND_TOP,
                                     e->sums + (size_t)row * (size_t)backend_spans(e->shape.vocab),
                                     BACKEND_TOP, BACKEND_SPAN};
    int32_t span;
    enum sampler_found how = sampler_short(&seq->sampler, e->work, &in, ret);
    *found = how == SAMPLER_FOUND;
    if (how != SAMPLER_IN_SPAN) return 0;
    span = *ret;
    int first = span * BACKEND_SPAN, n = e->shape.vocab - first;
    int r =
        model_columns(e->model, e->logits, row, first, n < BACKEND_SPAN ? n : BACKEND_SPAN, err);
    if (r == 0) *found = sampler_in_span(&seq->sampler, e->work, &in, span, e->logits, ret);
    return r;
}

/* *ret_status: of the sequence. */
static int push_short(struct engine *e, struct sequence *seq, int row, int *ret_status,
                      struct error *err) {
    struct sampler_result token = {0};
    bool found = false;
    int r = sequence_takes_short(seq) ? find_token(e, seq, row, &found, &token.id, err) : 0;
    if (r == 0 && !found) r = model_columns(e->model, e->logits, row, 0, e->shape.vocab, err);
    if (r < 0) return r;
    *ret_status = found ? sequence_push(seq, &token) : sequence_sample(seq, e->work, e->logits);
    return 0;
}

static int push_token(struct engine *e, struct sequence *seq, const struct reading *r, int row,
                      int *ret_status, struct error *err) {
    struct sampler_result token = {0};
    if (e->model && r->form == READ_SHORT) return push_short(e, seq, row, ret_status, err);
    if (e->model && r->form == READ_ALL) {
        const float *logits = e->logits + (size_t)row * (size_t)e->shape.vocab;
        *ret_status = sequence_sample(seq, e->work, logits);
        return 0;
    }
    if (e->model)
        token.id = e->best[row];
    else
        engine_null_result(&e->null, e->null.token, sequence_n_top(seq), &token);
    *ret_status = sequence_push(seq, &token);
    return 0;
}

/* Samples row by row for as long as the guesses before a row were right, so that every token is
 * chosen as it would have been without guesses. Returns how many tokens there are more. */
static int sample_rows(struct engine *e, struct sequence *seq, int n_guesses, struct reading *r,
                       int *ret_status, struct error *err) {
    int n = 0, row;
    bool right = true;
    *ret_status = 0;
    for (int i = 0; i <= n_guesses; i++) {
        int status = next_row(e, r, &row, err);
        if (status < 0) return status;
        if (!right) continue;
        status = push_token(e, seq, r, row, ret_status, err);
        if (status < 0) return status;
        n += *ret_status == 0;
        right = *ret_status == 0 && !seq->ended && i < n_guesses &&
                seq->tokens[seq->n_tokens - 1] == seq->guesses[i];
    }
    return n;
}

/* Fewer guesses for who is hard to guess, and after misses none for a while: each costs a row of
 * the step. */
static void adapt_guesses(struct engine *e, struct sequence *seq, int n_guesses, int n_right) {
    e->stats.draft_tokens += n_guesses;
    e->stats.draft_accepted += n_right;
    seq->n_guesses = n_right < n_guesses ? n_right + 1 : 2 * seq->n_guesses;
    if (seq->n_guesses > e->options.draft_tokens) seq->n_guesses = e->options.draft_tokens;
    int longer = seq->pause < MOST_PAUSE ? 2 * seq->pause + 1 : seq->pause;
    seq->pause = n_right > 0 ? 0 : longer;
    seq->guess_from = seq->n_tokens + seq->pause;
}

static int sample(struct engine *e, struct sequence *seq, const struct scheduler_share *share,
                  struct reading *r, struct error *err) {
    int status;
    int n = sample_rows(e, seq, share->n_drafts, r, &status, err);
    if (n < 0) return n;
    if (seq->first_ns == 0) seq->first_ns = engine_mail_now_ns();
    e->stats.generated_tokens += n;
    if (share->n_drafts > 0) adapt_guesses(e, seq, share->n_drafts, n > 0 ? n - 1 : 0);
    if (status == 0 && seq->ended) {
        engine_finish(e, seq, seq->finish);
        return 0;
    }
    if (status == 0) status = engine_post_text(e, seq);
    if (status < 0)
        engine_fail(e, seq, status, "out of memory");
    else
        scheduler_grow(e->scheduler, seq->slot, n);
    return 0;
}

static void end_prompt(struct engine *e, struct sequence *seq) {
    bool embeds = seq->request->task == ENGINE_EMBED;
    if (embeds && engine_prompt_pool(e, seq) < 0)
        engine_fail(e, seq, -ENOMEM, "out of memory");
    else
        engine_finish(e, seq, embeds ? FINISH_STOP : FINISH_LENGTH);
}

static int read_prompts(struct engine *e, int n_shares, struct error *err) {
    int r = 0;
    for (int i = 0; i < n_shares && r == 0; i++) {
        struct sequence *seq = e->owners[e->shares[i].slot];
        r = engine_prompt_read(e, seq, &e->shares[i], e->firsts ? e->firsts[i] : 0, err);
    }
    return r;
}

/* Sequences end or fail on the way: their shares count no more. */
static int read_samples(struct engine *e, int n_shares, struct error *err) {
    struct reading reading = {.n_shares = n_shares};
    int r = 0;
    for (int i = 0; i < n_shares && r == 0; i++) {
        const struct scheduler_share *share = &e->shares[i];
        struct sequence *seq = e->owners[share->slot];
        if (!seq || !share->samples) continue;
        if (sequence_generated(seq) == 0) e->stats.prompt_tokens += seq->n_prompt;
        if (sequence_is_prompt(seq))
            end_prompt(e, seq);
        else
            r = sample(e, seq, share, &reading, err);
    }
    return r;
}

/* -- A step ---------------------------------------------------------------------------------- */

static void guess(struct engine *e) {
    const int *slots;
    if (e->options.draft_tokens == 0 || !e->model) return;
    int n_running = scheduler_running(e->scheduler, &slots);
    for (int i = 0; i < n_running; i++) {
        struct sequence *seq = e->owners[slots[i]];
        if (sequence_generated(seq) == 0) continue;
        if (seq->n_guesses == 0) seq->n_guesses = e->options.draft_tokens;
        int n =
            seq->n_tokens < seq->guess_from
                ? 0
                : draft_next(&seq->draft, seq->tokens, seq->n_tokens, seq->guesses, seq->n_guesses);
        scheduler_draft(e->scheduler, seq->slot, n);
    }
}

static int run_model(struct engine *e, int n_shares, struct error *err) {
    bool samples = false;
    struct batch batch = build_batch(e, n_shares);
    model_forward(e->model, &batch);
    for (int i = 0; i < n_shares; i++)
        samples =
            samples || (e->shares[i].samples && !sequence_is_prompt(e->owners[e->shares[i].slot]));
    /* Without results nothing would wait, and the batch's arrays are filled anew next time. */
    return samples ? 0 : backend_sync(e->backend, err);
}

static void fail_all(struct engine *e, const char *text) {
    e->stats.failed = true;
    e->stats.state = ENGINE_BROKEN;
    engine_mail_break(&e->mail, text);
    for (int i = 0; i < e->capacity; i++)
        if (e->sequences[i]) engine_fail(e, e->sequences[i], -EIO, text);
}

/* -- Figures --------------------------------------------------------------------------------- */

/* Returns how many tokens of prompts are in the step; what is computed again counts too. */
static int note_shares(struct engine *e, int n, int64_t now_ns) {
    int prompt_tokens = 0;
    for (int i = 0; i < n; i++) {
        const struct scheduler_share *share = &e->shares[i];
        struct sequence *seq = e->owners[share->slot];
        seq->n_cached = share->n_cached;
        if (seq->queued_ns == 0) seq->queued_ns = now_ns;
        if (share->n > 1 || seq->first_ns == 0) prompt_tokens += share->n;
    }
    return prompt_tokens;
}

static void note_duration(struct engine *e, int prompt_tokens, double seconds) {
    struct engine_rates *r = &e->rates;
    const double keep = 0.9;
    if (prompt_tokens > 0) {
        r->prompt_tokens = keep * r->prompt_tokens + prompt_tokens;
        r->prompt_seconds = keep * r->prompt_seconds + seconds;
        if (r->prompt_seconds > 0) e->stats.prefill_rate = r->prompt_tokens / r->prompt_seconds;
    } else {
        r->steps = keep * r->steps + 1;
        r->step_seconds = keep * r->step_seconds + seconds;
        e->stats.step_seconds = r->step_seconds / r->steps;
    }
}

/* Of the null engine: shares that are due stay, and the next step is when another is. */
static int keep_due(struct engine *e, int n, int64_t now_ns) {
    int kept = 0;
    int64_t next = n > 0 ? INT64_MAX : 0;
    for (int i = 0; i < n; i++) {
        struct sequence *seq = e->owners[e->shares[i].slot];
        bool due = seq->due_ns <= now_ns;
        if (due) {
            if (e->shares[i].samples) seq->due_ns = engine_null_due(&e->null, seq->due_ns, now_ns);
            e->shares[kept++] = e->shares[i];
        }
        if (seq->due_ns < next) next = seq->due_ns;
    }
    e->null.next_ns = next;
    return kept;
}

void engine_step(struct engine *e) {
    struct error err;
    int64_t start = engine_mail_now_ns();
    guess(e);
    int n = scheduler_next(e->scheduler, e->shares);
    if (!e->model) n = keep_due(e, n, start);
    if (n == 0) return;
    int prompt_tokens = note_shares(e, n, start);
    int r = e->model ? run_model(e, n, &err) : 0;
    scheduler_ran(e->scheduler, e->shares, n);
    if (r == 0) r = read_prompts(e, n, &err);
    if (r == 0) r = read_samples(e, n, &err);
    if (r < 0) fail_all(e, err.text);
    e->stats.steps++;
    e->stats.last_step_ns = engine_mail_now_ns();
    double seconds = (double)(e->stats.last_step_ns - start) * 1e-9;
    e->stats.busy_seconds += seconds;
    /* A null engine's step lasts a tick, most of it spent waiting. */
    bool ticks = !e->model && e->null.interval_ns > 0;
    note_duration(e, prompt_tokens, ticks ? (double)e->null.interval_ns * 1e-9 : seconds);
}
