#include "engine/bench.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/model.h"
#include "engine/sampler.h"
#include "kernels/error.h"

enum {
    MAX_READ_THREADS = 64,
    READ_SAMPLES = 15,      /* an odd number: the median is one of them */
    READ_SPREAD = 256 << 20 /* bytes: beyond the caches of the machines that we know */
};

struct bench {
    const struct bench_options *options;
    struct model *m;
    int max_batch_tokens, vocab, blocks_per_seq;
    int32_t *tokens, *positions, *seqs, *blocks, *rows;
    float *logits;    /* (batch, vocab) */
    uint64_t *memory; /* the read pass walks over it */
    size_t memory_bytes, cursor;
    double *decode_times, *read_times;
};

/* -- Read pass ------------------------------------------------------------------------------- */

struct reader {
    const uint64_t *from;
    size_t n; /* words */
    uint64_t sum;
};

/* Four chains, so that adding never waits. */
static void *read_words(void *arg) {
    struct reader *r = arg;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 4 <= r->n; i += 4) {
        a += r->from[i];
        b += r->from[i + 1];
        c += r->from[i + 2];
        d += r->from[i + 3];
    }
    r->sum = a + b + c + d;
    return NULL;
}

/* Sums the next bytes of the ring with every thread; returns the seconds. */
static double read_pass(struct bench *b, size_t bytes) {
    if (b->cursor + bytes > b->memory_bytes) b->cursor = 0;
    const uint64_t *from = b->memory + b->cursor / 8;
    b->cursor += bytes / 64 * 64;
    int n = b->options->n_threads < MAX_READ_THREADS ? b->options->n_threads : MAX_READ_THREADS;
    struct reader readers[MAX_READ_THREADS];
    pthread_t threads[MAX_READ_THREADS];
    size_t each = bytes / 8 / (size_t)n;
    double started = b->options->now();
    int running = 1;
    for (int i = 0; i < n; i++) {
        readers[i] = (struct reader){.from = from + (size_t)i * each, .n = each};
        if (i > 0 && pthread_create(&threads[running], NULL, read_words, &readers[i]) == 0)
            running++;
        else if (i > 0)
            read_words(&readers[i]);
    }
    read_words(&readers[0]);
    for (int i = 1; i < running; i++) pthread_join(threads[i], NULL);
    double seconds = b->options->now() - started;
    /* Keeps the sums alive without printing them. */
    for (int i = 0; i < n; i++) b->memory[0] ^= readers[i].sum & 1;
    return seconds;
}

/* -- Model ----------------------------------------------------------------------------------- */

static int allocate(struct bench *b, struct error *err) {
    const struct bench_options *o = b->options;
    size_t batch = (size_t)o->batch, step = (size_t)b->max_batch_tokens;
    size_t blocks = batch * (size_t)b->blocks_per_seq;
    if (!o->no_read)
        b->memory_bytes = o->weight_bytes > READ_SPREAD ? o->weight_bytes : READ_SPREAD;
    b->tokens = malloc((3 * step + blocks + batch) * sizeof *b->tokens);
    b->logits = malloc(batch * (size_t)b->vocab * sizeof *b->logits);
    b->memory = malloc(b->memory_bytes + 1); /* malloc(0) may give NULL */
    b->decode_times = malloc(((size_t)o->gen + READ_SAMPLES) * sizeof *b->decode_times);
    if (!b->tokens || !b->logits || !b->memory || !b->decode_times)
        return error_set(err, -ENOMEM, "bench: out of memory");
    b->positions = b->tokens + step;
    b->seqs = b->positions + step;
    b->blocks = b->seqs + step;
    b->rows = b->blocks + blocks;
    b->read_times = b->decode_times + o->gen;
    for (size_t i = 0; i < blocks; i++) b->blocks[i] = (int32_t)i;
    /* Written, so that every page is real memory and not the one page of zeros. */
    memset(b->memory, 1, b->memory_bytes);
    return 0;
}

/* Some token; what it is does not change the speed. */
static int32_t some_token(const struct bench *b, int seq, int position) {
    uint32_t x = (uint32_t)seq * 2654435761u + (uint32_t)position * 40503u + 12345u;
    return (int32_t)((x >> 7) % (uint32_t)b->vocab);
}

static struct batch make_batch(struct bench *b, int n) {
    return (struct batch){.n_tokens = n,
                          .n_seqs = b->options->batch,
                          .tokens = b->tokens,
                          .positions = b->positions,
                          .seqs = b->seqs,
                          .blocks = b->blocks,
                          .max_blocks = b->blocks_per_seq};
}

/* The whole prompt of one sequence and its first logits. */
static int prefill(struct bench *b, int seq, double *seconds, struct error *err) {
    double started = b->options->now();
    int n = 0, prompt = b->options->prompt;
    for (int done = 0; done < prompt; done += n) {
        n = prompt - done < b->max_batch_tokens ? prompt - done : b->max_batch_tokens;
        for (int i = 0; i < n; i++) {
            b->tokens[i] = some_token(b, seq, done + i);
            b->positions[i] = done + i;
            b->seqs[i] = seq;
        }
        struct batch batch = make_batch(b, n);
        model_forward(b->m, &batch);
    }
    int32_t last = n - 1;
    int r = model_logits(b->m, b->logits, &last, 1, err);
    *seconds = b->options->now() - started;
    return r;
}

static int decode(struct bench *b, int position, double *seconds, struct error *err) {
    double started = b->options->now();
    for (int i = 0; i < b->options->batch; i++) {
        b->tokens[i] = some_token(b, i, position);
        b->positions[i] = position;
        b->seqs[i] = b->rows[i] = i;
    }
    struct batch batch = make_batch(b, b->options->batch);
    model_forward(b->m, &batch);
    int r = model_logits(b->m, b->logits, b->rows, b->options->batch, err);
    *seconds = b->options->now() - started;
    return r;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static uint64_t hash_floats(const float *values, size_t n) {
    uint64_t hash = 0xcbf29ce484222325u;
    const unsigned char *bytes = (const unsigned char *)values;
    for (size_t i = 0; i < n * sizeof *values; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

/* Seconds to choose a token, the mean of some. */
static int time_sampler(struct bench *b, const struct sampler_params *params, double *ret,
                        struct error *err) {
    enum { TIMES = 20 };
    struct sampler sampler;
    struct sampler_result result;
    struct sampler_work *work = sampler_work_new(b->vocab);
    if (!work) return error_set(err, -ENOMEM, "bench: out of memory");
    const struct sampler_call call = {.logits = b->logits, .n_top = -1};
    sampler_init(&sampler, params, 1);
    double started = b->options->now();
    for (int i = 0; i < TIMES; i++) sampler_next(&sampler, work, &call, &result);
    *ret = (b->options->now() - started) / TIMES;
    sampler_work_free(work);
    return 0;
}

/* Sums over the decode steps to means. */
static int end_profile(struct bench *b, struct bench_result *r, struct error *err) {
    struct sampler_params params;
    profile_stop(&r->profile);
    for (int part = 0; part < PROFILE_PARTS; part++) r->profile.seconds[part] /= b->options->gen;
    for (int i = 0; i < b->options->gen; i++) r->step += b->decode_times[i] / b->options->gen;
    sampler_defaults(&params);
    params.temperature = 0;
    int rc = time_sampler(b, &params, &r->greedy, err);
    params.temperature = 1;
    params.top_k = 50;
    params.top_p = 0.9f;
    return rc < 0 ? rc : time_sampler(b, &params, &r->drawn, err);
}

static int measure(struct bench *b, struct bench_result *ret, struct error *err) {
    const struct bench_options *o = b->options;
    double total = 0, seconds = 0;
    int r = prefill(b, 0, &seconds, err); /* touches every page once; not counted */
    for (int seq = 0; r == 0 && seq < o->batch; seq++) {
        r = prefill(b, seq, &seconds, err);
        total += seconds;
    }
    struct bench_result result = {0};
    if (r == 0 && o->profile) profile_start(&result.profile, o->profile, o->now);
    int reads = 0, every = o->gen > READ_SAMPLES ? o->gen / READ_SAMPLES : 1;
    for (int i = 0; r == 0 && i < o->gen; i++) {
        r = decode(b, o->prompt + i, &b->decode_times[i], err);
        if (!o->no_read && i % every == 0 && reads < READ_SAMPLES)
            b->read_times[reads++] = read_pass(b, o->weight_bytes);
    }
    if (result.profile.be) {
        int rc = end_profile(b, &result, err);
        if (r == 0) r = rc;
    }
    if (r < 0) return r;
    double all_steps = 0;
    for (int i = 0; i < o->gen; i++) all_steps += b->decode_times[i];
    double step = median(b->decode_times, o->gen);
    result.prefill_rate = o->prompt * (double)o->batch / total;
    result.decode_rate = o->batch / step;
    result.decode_mean_rate = o->batch * (double)o->gen / all_steps;
    result.first_token = total / o->batch;
    result.weight_rate = (double)o->weight_bytes / step;
    if (reads > 0) {
        double read = median(b->read_times, reads);
        result.read_rate = (double)o->weight_bytes / read;
        result.limit_fraction = read / step;
    }
    result.logits_hash = hash_floats(b->logits, (size_t)o->batch * (size_t)b->vocab);
    *ret = result;
    return 0;
}

int bench_run(struct bench_result *ret, struct model *m, int max_batch_tokens,
              const struct bench_options *options, struct error *err) {
    int positions = options->prompt + options->gen;
    struct bench b = {.options = options,
                      .m = m,
                      .max_batch_tokens = max_batch_tokens,
                      .vocab = model_get_config(m)->vocab,
                      .blocks_per_seq = (positions + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK};
    int r = allocate(&b, err);
    if (r == 0) r = measure(&b, ret, err);
    free(b.tokens);
    free(b.logits);
    free(b.memory);
    free(b.decode_times);
    return r;
}
