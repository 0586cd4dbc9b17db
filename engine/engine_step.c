#include "engine/engine_state.h"

#include <errno.h>
#include <string.h>

#include "engine/kv.h"
#include "engine/model.h"

/* -- Events ---------------------------------------------------------------------------------- */

int engine_post_text(struct engine *e, struct sequence *seq) {
    if (seq->text.len == 0 && seq->n_ready == 0) return 0;
    struct engine_event *event = engine_mail_event(seq->text.len, seq->n_ready);
    if (!event) return -ENOMEM;
    event->kind = ENGINE_TEXT;
    event->ticket = seq->ticket;
    event->tag = seq->request->tag;
    event->n_prompt = seq->n_prompt;
    event->n_generated = sequence_generated(seq);
    event->n_cached = seq->n_cached;
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
    last->n_prompt = seq->n_prompt;
    last->n_generated = sequence_generated(seq);
    last->n_cached = seq->n_cached;
    last->stop = seq->stop.matched;
    last->stop_id = seq->stop_id;
    scheduler_remove(e->scheduler, seq->slot);
    e->sequences[seq->place] = NULL;
    e->owners[seq->slot] = NULL;
    sequence_free(seq);
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

/* rows: the batch's tokens whose logits are wanted, in the order of shares. */
static struct batch build_batch(struct engine *e, int n_shares, int *ret_rows) {
    struct batch b = {.tokens = e->tokens,
                      .positions = e->positions,
                      .seqs = e->seqs,
                      .blocks = e->blocks,
                      .n_seqs = n_shares,
                      .max_blocks = widest_table(e->shares, n_shares)};
    int n_rows = 0;
    for (int i = 0; i < n_shares; i++) {
        const struct scheduler_share *share = &e->shares[i];
        struct sequence *seq = e->owners[share->slot];
        seq->n_cached = share->n_cached;
        memcpy(e->tokens + b.n_tokens, seq->tokens + share->start,
               (size_t)share->n * sizeof *e->tokens);
        for (int j = 0; j < share->n; j++) {
            e->positions[b.n_tokens + j] = share->start + j;
            e->seqs[b.n_tokens + j] = i;
        }
        b.n_tokens += share->n;
        if (share->samples) e->rows[n_rows++] = b.n_tokens - 1;

        int32_t *row = e->blocks + (size_t)i * (size_t)b.max_blocks;
        memcpy(row, share->blocks, (size_t)share->n_blocks * sizeof *row);
        /* Never read, but a back end may copy the table whole. */
        for (int j = share->n_blocks; j < b.max_blocks; j++) row[j] = 0;
    }
    *ret_rows = n_rows;
    return b;
}

static int push_token(struct engine *e, struct sequence *seq, const float *logits) {
    struct sampler_result token;
    if (!e->options.null) return sequence_sample(seq, e->work, logits);
    engine_null_result(&e->null, e->null.token, sequence_n_top(seq), &token);
    return sequence_push(seq, &token);
}

static void sample(struct engine *e, struct sequence *seq, const float *logits) {
    if (sequence_generated(seq) == 0) e->stats.prompt_tokens += seq->n_prompt;
    if (sequence_is_prompt(seq)) {
        engine_finish(e, seq, FINISH_LENGTH);
        return;
    }
    int r = push_token(e, seq, logits);
    if (r == 0) e->stats.generated_tokens++;
    if (r == 0 && seq->ended) {
        engine_finish(e, seq, seq->finish);
        return;
    }
    if (r == 0) r = engine_post_text(e, seq);
    if (r < 0)
        engine_fail(e, seq, r, "out of memory");
    else
        scheduler_grow(e->scheduler, seq->slot, 1);
}

static int run_model(struct engine *e, int n_shares, struct error *err) {
    int n_rows;
    if (e->options.null) return 0;
    struct batch batch = build_batch(e, n_shares, &n_rows);
    model_forward(e->model, &batch);
    /* Without rows nothing would wait, and the batch's arrays are filled anew next time. */
    return n_rows > 0 ? model_logits(e->model, e->logits, e->rows, n_rows, err)
                      : backend_sync(e->backend, err);
}

static void fail_all(struct engine *e, const char *text) {
    e->stats.failed = true;
    e->stats.state = ENGINE_BROKEN;
    engine_mail_break(&e->mail, text);
    for (int i = 0; i < e->capacity; i++)
        if (e->sequences[i]) engine_fail(e, e->sequences[i], -EIO, text);
}

void engine_step(struct engine *e) {
    struct error err;
    int64_t start = engine_mail_now_ns();
    int n = scheduler_next(e->scheduler, e->shares);
    if (n == 0) return;
    if (run_model(e, n, &err) < 0) {
        fail_all(e, err.text);
    } else {
        scheduler_ran(e->scheduler, e->shares, n);
        const float *logits = e->logits;
        for (int i = 0; i < n; i++) {
            if (!e->shares[i].samples) continue;
            sample(e, e->owners[e->shares[i].slot], logits);
            logits += e->options.null ? 0 : e->shape.vocab;
        }
    }
    e->stats.steps++;
    e->stats.last_step_ns = engine_mail_now_ns();
    if (e->options.null) engine_null_tick(&e->null, e->stats.last_step_ns);
    e->stats.busy_seconds += (double)(e->stats.last_step_ns - start) * 1e-9;
}
