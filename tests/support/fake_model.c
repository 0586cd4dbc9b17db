#include "tests/support/fake_model.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model.h"
#include "engine/source.h"
#include "kernels/backend.h"
#include "kernels/error.h"
#include "tests/support/in_short.h"
#include "tests/support/random.h"

struct model {
    const struct model_config *config;
    struct model_options options;
    int32_t *kv;         /* (n_kv_blocks, BACKEND_KV_BLOCK) token ids */
    uint64_t *states;    /* (max_batch_tokens) hash of the tokens up to this one */
    int32_t *last;       /* (max_batch_tokens) the token itself */
    const int32_t *rows; /* of the last model_top() */
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum fake_model_kind kind;
    bool whole, held, broken, load_held, load_broken;
    int permits, entered, open_count, max_tokens, max_seqs, columns;
} control = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* -- Controls -------------------------------------------------------------------------------- */

static int locked_get(const int *value) {
    pthread_mutex_lock(&control.lock);
    int v = *value;
    pthread_mutex_unlock(&control.lock);
    return v;
}

static void locked_add(int *value, int n) {
    pthread_mutex_lock(&control.lock);
    *value += n;
    pthread_cond_broadcast(&control.changed);
    pthread_mutex_unlock(&control.lock);
}

int fake_model_columns(void) { return locked_get(&control.columns); }

static void locked_set(bool *value, bool v) {
    pthread_mutex_lock(&control.lock);
    *value = v;
    pthread_cond_broadcast(&control.changed);
    pthread_mutex_unlock(&control.lock);
}

void fake_model_set_whole(bool whole) { locked_set(&control.whole, whole); }

void fake_model_set_kind(enum fake_model_kind kind) {
    pthread_mutex_lock(&control.lock);
    control.kind = kind;
    pthread_mutex_unlock(&control.lock);
}

void fake_model_hold(void) { locked_set(&control.held, true); }

void fake_model_allow(int n) { locked_add(&control.permits, n); }

void fake_model_release(void) { locked_set(&control.held, false); }

void fake_model_wait_entered(int n) {
    pthread_mutex_lock(&control.lock);
    while (control.entered < n) pthread_cond_wait(&control.changed, &control.lock);
    pthread_mutex_unlock(&control.lock);
}

int fake_model_entered(void) { return locked_get(&control.entered); }

void fake_model_break(void) { locked_set(&control.broken, true); }

void fake_model_hold_load(void) { locked_set(&control.load_held, true); }

void fake_model_release_load(void) { locked_set(&control.load_held, false); }

void fake_model_break_load(void) { locked_set(&control.load_broken, true); }

int fake_model_max_tokens(void) { return locked_get(&control.max_tokens); }

int fake_model_max_seqs(void) { return locked_get(&control.max_seqs); }

bool fake_model_all_closed(void) { return locked_get(&control.open_count) == 0; }

/* -- Back end -------------------------------------------------------------------------------- */

static int fake_sync(struct backend *be, struct error *err) {
    (void)be;
    (void)err;
    return 0;
}

static const struct backend_ops fake_ops = {.sync = fake_sync};

static struct backend_memory device; /* set before an engine is opened */

static void fake_memory(struct backend *be, struct backend_memory *ret) {
    (void)be;
    *ret = device;
}

static const struct backend_ops fake_device_ops = {.sync = fake_sync, .memory = fake_memory};

void fake_model_set_device(size_t total, size_t free_bytes) {
    device = (struct backend_memory){.total = total, .free = free_bytes};
}

int backend_open(struct backend **ret, const struct backend_options *options, struct error *err) {
    if (options->name && strcmp(options->name, "absent") == 0)
        return error_set(err, -ENODEV, "there is no back end 'absent'");
    struct backend *be = calloc(1, sizeof *be);
    if (!be) return error_set(err, -ENOMEM, "back end: out of memory");
    *be = (struct backend){
        .ops = device.total ? &fake_device_ops : &fake_ops, .name = "fake", .detail = "no threads"};
    locked_add(&control.open_count, 1);
    *ret = be;
    return 0;
}

void backend_close(struct backend *be) {
    if (!be) return;
    locked_add(&control.open_count, -1);
    free(be);
}

/* -- Model ----------------------------------------------------------------------------------- */

static bool locked_is(const bool *value) {
    pthread_mutex_lock(&control.lock);
    bool v = *value;
    pthread_mutex_unlock(&control.lock);
    return v;
}

static int load(const struct model_options *o, struct error *err) {
    do {
        if (o->progress && !o->progress(o->progress_arg, 2, 4, 3))
            return error_set(err, -ECANCELED, "model: loading was stopped");
        sched_yield();
    } while (locked_is(&control.load_held));
    return locked_is(&control.load_broken) ? error_set(err, -EBADMSG, "tensor 'x': not there") : 0;
}

int model_open(struct model **ret, struct backend *be, struct source *src,
               const struct model_options *options, struct error *err) {
    (void)be;
    int r = load(options, err);
    if (r < 0) return r;
    struct model *m = calloc(1, sizeof *m);
    if (!m) return error_set(err, -ENOMEM, "model: out of memory");
    locked_add(&control.open_count, 1);
    m->config = source_config(src);
    m->options = *options;
    m->states = calloc((size_t)options->max_batch_tokens, sizeof *m->states);
    m->last = calloc((size_t)options->max_batch_tokens, sizeof *m->last);
    if (!m->states || !m->last) {
        model_close(m);
        return error_set(err, -ENOMEM, "model: out of memory");
    }
    *ret = m;
    return 0;
}

void model_close(struct model *m) {
    if (!m) return;
    locked_add(&control.open_count, -1);
    free(m->kv);
    free(m->states);
    free(m->last);
    free(m);
}

const struct model_config *model_get_config(const struct model *m) { return m->config; }

int model_make_kv(struct model *m, int n_blocks, struct error *err) {
    m->options.n_kv_blocks = n_blocks;
    m->kv = malloc((size_t)n_blocks * BACKEND_KV_BLOCK * sizeof *m->kv);
    return m->kv ? 0 : error_set(err, -ENOMEM, "model: out of memory");
}

int model_reserve(struct model *m, int n_seqs, int context, struct error *err) {
    (void)m;
    (void)n_seqs;
    (void)context;
    (void)err;
    return 0;
}

size_t model_kv_block_bytes(const struct model_config *config, enum dtype kv_type) {
    (void)config;
    (void)kv_type;
    return BACKEND_KV_BLOCK * sizeof(int32_t);
}

size_t model_work_bytes(const struct model *m) {
    return (size_t)m->options.max_batch_tokens * (sizeof *m->states + sizeof *m->last);
}

size_t model_weight_bytes(const struct model *m) { return (size_t)m->config->vocab; }

size_t model_kv_bytes(const struct model *m) {
    return (size_t)m->options.n_kv_blocks * BACKEND_KV_BLOCK * sizeof *m->kv;
}

static void enter(const struct batch *batch) {
    pthread_mutex_lock(&control.lock);
    control.entered++;
    if (batch->n_tokens > control.max_tokens) control.max_tokens = batch->n_tokens;
    if (batch->n_seqs > control.max_seqs) control.max_seqs = batch->n_seqs;
    pthread_cond_broadcast(&control.changed);
    while (control.held && control.permits == 0) pthread_cond_wait(&control.changed, &control.lock);
    if (control.held) control.permits--;
    pthread_mutex_unlock(&control.lock);
}

static uint64_t mix(uint64_t state, int32_t id) {
    state ^= (uint64_t)id + 1;
    return random_next(&state);
}

static int32_t *cell(struct model *m, const struct batch *batch, int seq, int position) {
    int32_t block = batch->blocks[seq * batch->max_blocks + position / BACKEND_KV_BLOCK];
    if (block < 0 || block >= m->options.n_kv_blocks) abort();
    return &m->kv[block * BACKEND_KV_BLOCK + position % BACKEND_KV_BLOCK];
}

void model_forward(struct model *m, const struct batch *batch) {
    enter(batch);
    if (batch->n_tokens > m->options.max_batch_tokens) abort();
    for (int i = 0; i < batch->n_tokens; i++) {
        if (batch->tokens[i] < 0 || batch->tokens[i] >= m->config->vocab) abort();
        *cell(m, batch, batch->seqs[i], batch->positions[i]) = batch->tokens[i];
    }
    for (int i = 0; i < batch->n_tokens; i++) {
        m->states[i] = 0;
        for (int p = 0; p <= batch->positions[i]; p++)
            m->states[i] = mix(m->states[i], *cell(m, batch, batch->seqs[i], p));
        m->last[i] = batch->tokens[i];
    }
}

static void alphabet_row(float *logits, int vocab, int32_t last) {
    memset(logits, 0, (size_t)vocab * sizeof *logits);
    logits[last == 'z' || last >= 255 ? FAKE_MODEL_EOS : last + 1] = 50;
}

static void hash_row(float *logits, int vocab, uint64_t state) {
    for (int i = 0; i < vocab; i++) logits[i] = (float)(random_next(&state) % 4096) / 512;
    for (int i = FAKE_MODEL_EOS; i < vocab; i++) logits[i] = -50;
}

/* Mostly what followed the last token before, so that guesses are right now and then; yet all
 * tokens have a say. */
static void loop_row(float *logits, int vocab, uint64_t state, int32_t last) {
    uint64_t little = (uint64_t)(last % 8) * 977 + 5;
    hash_row(logits, vocab, state);
    for (int i = 0; i < FAKE_MODEL_EOS; i++) logits[i] *= 0.3f;
    logits['a' + random_next(&little) % 8] += 4;
}

static void fill_row(float *logits, int vocab, uint64_t state, int32_t last) {
    pthread_mutex_lock(&control.lock);
    enum fake_model_kind kind = control.kind;
    pthread_mutex_unlock(&control.lock);
    if (kind == FAKE_MODEL_ALPHABET)
        alphabet_row(logits, vocab, last);
    else if (kind == FAKE_MODEL_LOOP)
        loop_row(logits, vocab, state, last);
    else
        hash_row(logits, vocab, state);
}

static void hidden_row(float *hidden, int width, uint64_t state) {
    for (int i = 0; i < width; i++) hidden[i] = (float)(random_next(&state) % 4096) / 1024 - 2;
}

int model_logits(struct model *m, float *logits, const int32_t *rows, int n_rows,
                 struct error *err) {
    pthread_mutex_lock(&control.lock);
    bool broken = control.broken;
    pthread_mutex_unlock(&control.lock);
    if (broken) return error_set(err, -EIO, "the device was lost");
    if (n_rows > m->options.max_logit_rows) abort();
    size_t vocab = (size_t)m->config->vocab;
    for (int i = 0; i < n_rows; i++)
        fill_row(logits + (size_t)i * vocab, m->config->vocab, m->states[rows[i]],
                 m->last[rows[i]]);
    return 0;
}

bool model_can_choose(const struct model *m) { return m && !locked_is(&control.whole); }

int model_best(struct model *m, int32_t *ids, const int32_t *rows, int n_rows, struct error *err) {
    float logits[FAKE_MODEL_VOCAB];
    for (int i = 0; i < n_rows; i++) {
        int r = model_logits(m, logits, rows + i, 1, err);
        if (r < 0) return r;
        ids[i] = 0;
        for (int k = 1; k < FAKE_MODEL_VOCAB; k++)
            if (logits[k] > logits[ids[i]]) ids[i] = k;
    }
    return 0;
}

bool model_can_shorten(const struct model *m) { return m && !locked_is(&control.whole); }

int model_top(struct model *m, struct top_call *call, const int32_t *rows, struct error *err) {
    float logits[FAKE_MODEL_VOCAB];
    m->rows = rows;
    for (int i = 0; i < call->n_rows; i++) {
        int r = model_logits(m, logits, rows + i, 1, err);
        if (r < 0) return r;
        in_short(logits, FAKE_MODEL_VOCAB, call->temperatures[i],
                 call->ranks + (size_t)i * BACKEND_TOP, call->sums + i);
    }
    return 0;
}

int model_columns(struct model *m, float *logits, int row, int first, int n, struct error *err) {
    float all[FAKE_MODEL_VOCAB];
    int r = model_logits(m, all, m->rows + row, 1, err);
    locked_add(&control.columns, 1);
    if (r == 0) memcpy(logits, all + first, (size_t)n * sizeof *logits);
    return r;
}

int model_hidden(struct model *m, float *hidden, const int32_t *rows, int n_rows,
                 struct error *err) {
    if (locked_is(&control.broken)) return error_set(err, -EIO, "the device was lost");
    if (n_rows > m->options.max_logit_rows) abort();
    for (int i = 0; i < n_rows; i++)
        hidden_row(hidden + i * m->config->embed_dim, m->config->embed_dim, m->states[rows[i]]);
    return 0;
}

void fake_model_expect_hidden(const int32_t *ids, int n, float *hidden, int width) {
    uint64_t state = 0;
    for (int i = 0; i < n; i++) state = mix(state, ids[i]);
    hidden_row(hidden, width, state);
}

int32_t fake_model_expect(const int32_t *ids, int n) {
    float logits[FAKE_MODEL_VOCAB];
    uint64_t state = 0;
    for (int i = 0; i < n; i++) state = mix(state, ids[i]);
    fill_row(logits, FAKE_MODEL_VOCAB, state, ids[n - 1]);
    int32_t best = 0;
    for (int i = 1; i < FAKE_MODEL_VOCAB; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}
