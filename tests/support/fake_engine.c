#include "tests/support/fake_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/engine.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "server/model_source.h"
#include "server/text.h"

enum mode { ECHO, HOLD, QUEUE, GATE, FLOOD, LATE, FAIL, WAIT, EXPIRE };

enum { FLOOD_BYTES = 16 << 10 };

struct sequence {
    struct sequence *next;
    struct engine_request *request;
    uint64_t ticket;
    enum mode mode;
    struct text prompt; /* a byte is a token */
    struct text output; /* what it will say */
    size_t said;
    int n_prompt, n_generated;
    int stop, stop_id;
    int64_t queued_ns; /* when it started; 0 = not yet */
    bool started, cancelled, paused, over;
};

struct engine {
    pthread_t thread;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t news;
    struct sequence *sequences;
    struct engine_event *events, **end;
    struct engine_options options;
    struct engine_info info;
    struct engine_stats stats;
    uint64_t serial;
    int permits;
    bool closing, changed;
    struct error why; /* it is broken */
};

/* What the model's name after "load:" says; NULL: loaded at once. */
static const char *load_fifo;

/* -- Requests and events ------------------------------------------------------------------- */

struct engine_request *engine_request_new(void) {
    struct engine_request *request = calloc(1, sizeof *request);
    if (!request) return NULL;
    sampler_defaults(&request->sampling);
    request->n_logprobs = request->n_prompt_logprobs = -1;
    return request;
}

void engine_request_free(struct engine_request *request) {
    if (!request) return;
    for (int i = 0; i < request->n_messages; i++) {
        free(request->messages[i].role);
        free(request->messages[i].content);
    }
    for (int i = 0; i < request->n_stops; i++) free(request->stops[i]);
    free(request->messages);
    free(request->text);
    free(request->ids);
    free((void *)request->sampling.bias);
    free(request);
}

void engine_event_free(struct engine_event *event) {
    if (!event) return;
    free(event->text);
    free(event->tokens);
    free(event->vector);
    free(event->ids);
    free(event);
}

static struct engine_event *post(struct engine *e, const struct sequence *s,
                                 enum engine_event_kind kind, const char *text, size_t n) {
    struct engine_event *event = calloc(1, sizeof *event);
    if (!event || !(event->text = malloc(n + 1))) abort();
    memcpy(event->text, text, n);
    event->text[n] = 0;
    event->text_len = n;
    event->kind = kind;
    event->ticket = s->ticket;
    event->tag = s->request->tag;
    event->n_prompt = s->n_prompt;
    event->n_generated = s->n_generated;
    event->queued_ns = s->queued_ns;
    event->n_cached = strncmp(s->prompt.data, "@cached", 7) ? 0 : s->n_prompt / 2;
    event->stop = event->stop_id = -1;
    *e->end = event;
    e->end = &event->next;
    e->changed = true;
    return event;
}

/* -- A step -------------------------------------------------------------------------------- */

static void give_ids(struct engine_event *event, const struct sequence *s, int first) {
    event->ids = calloc(s->prompt.n + 1, sizeof *event->ids);
    if (!event->ids) abort();
    if (first) event->ids[event->n_ids++] = first;
    for (size_t i = 0; i < s->prompt.n; i++)
        event->ids[event->n_ids++] = (unsigned char)s->prompt.data[i];
}

static void fill_token(struct engine_token *token, char byte, float logprob, int n_top) {
    token->id = (unsigned char)byte;
    token->logprob = logprob;
    for (; token->n_top < n_top; token->n_top++) {
        token->top_ids[token->n_top] = (token->id + token->n_top) % FAKE_ENGINE_VOCAB;
        token->top_logprobs[token->n_top] = logprob - (float)token->n_top;
    }
}

static void post_prompt(struct engine *e, const struct sequence *s) {
    struct engine_event *event = post(e, s, ENGINE_PROMPT, "", 0);
    event->tokens = calloc(s->prompt.n + 1, sizeof *event->tokens);
    if (!event->tokens) abort();
    for (size_t i = 0; i < s->prompt.n; i++)
        fill_token(&event->tokens[event->n_tokens++], s->prompt.data[i], i ? -0.25f : NAN,
                   i ? s->request->n_prompt_logprobs : 0);
}

static void start(struct engine *e, struct sequence *s) {
    const struct engine_request *r = s->request;
    if (s->mode == QUEUE || e->stats.running >= e->options.max_running) return;
    e->stats.waiting--;
    e->stats.running++;
    s->started = true;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    s->queued_ns = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
    e->stats.prompt_tokens += s->n_prompt;
    if (s->mode == LATE) return;
    struct engine_event *event = post(e, s, ENGINE_STARTED, "", 0);
    if (r->return_tokens) give_ids(event, s, 0);
    if (r->n_prompt_logprobs >= 0) post_prompt(e, s);
    if (r->echo) post(e, s, ENGINE_TEXT, s->prompt.data, s->prompt.n);
}

/* Its length, its first and last byte, the kind of pooling; with length 1 if asked for. */
static void embed(struct engine_event *event, const struct sequence *s) {
    float *v = calloc(FAKE_ENGINE_HIDDEN, sizeof *v), length = 1;
    if (!v) abort();
    v[0] = (float)s->prompt.n;
    v[1] = s->prompt.n ? (float)s->prompt.data[0] : 0;
    v[2] = s->prompt.n ? (float)s->prompt.data[s->prompt.n - 1] : 0;
    v[3] = s->request->pooling == POOLING_MEAN;
    if (s->request->normalize)
        length = sqrtf(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]);
    for (int i = 0; i < FAKE_ENGINE_HIDDEN; i++) v[i] /= length;
    event->vector = v;
    event->n_vector = FAKE_ENGINE_HIDDEN;
}

static void end(struct engine *e, struct sequence *s, enum engine_finish finish) {
    struct engine_event *event = post(e, s, ENGINE_DONE, "", 0);
    event->finish = finish;
    event->stop = s->stop;
    event->stop_id = s->stop_id;
    if (s->request->task == ENGINE_EMBED) embed(event, s);
    if (s->request->task == ENGINE_TOKENIZE) give_ids(event, s, s->request->no_special ? 0 : 1);
    if (s->started)
        e->stats.running--;
    else
        e->stats.waiting--;
    if (finish == FINISH_CANCELLED)
        e->stats.cancelled++;
    else
        e->stats.finished++;
    s->over = true;
}

static void fail(struct engine *e, struct sequence *s, int code, const char *text) {
    post(e, s, ENGINE_FAILED, text, strlen(text))->code = code;
    e->stats.running--;
    e->stats.failures++;
    s->over = true;
}

/* The characters that the token completes; one byte says none of a longer one. */
static size_t complete(const struct sequence *s, size_t *ret_start) {
    size_t start = s->said;
    while (start > 0 && ((unsigned char)s->output.data[start] & 0xc0) == 0x80) start--;
    size_t n = text_utf8(s->output.data + start, s->output.n - start);
    *ret_start = start;
    return n && start + n == s->said + 1 ? n : 0;
}

/* What the next byte ends: strings of one byte alone. */
static bool at_stop(struct sequence *s) {
    const struct engine_request *r = s->request;
    char byte = s->output.data[s->said];
    for (int i = 0; i < r->n_stops && s->stop < 0; i++)
        if (r->stops[i][0] == byte && !r->stops[i][1]) s->stop = i;
    for (int i = 0; i < r->n_stop_ids && s->stop_id < 0; i++)
        if (r->stop_ids[i] == (unsigned char)byte) s->stop_id = r->stop_ids[i];
    return s->stop >= 0 || s->stop_id >= 0;
}

/* The likeliest of "@best" are those of the highest seed modulo 4. */
static float logprob_of(const struct sequence *s) {
    bool best = !strncmp(s->prompt.data, "@best", 5);
    return best ? (float)(s->request->seed % 4) - 4.0f : -0.5f;
}

static void say_token(struct engine *e, struct sequence *s) {
    const struct engine_request *r = s->request;
    size_t from, n = complete(s, &from);
    s->n_generated++;
    e->stats.generated_tokens++;
    struct engine_event *event = post(e, s, ENGINE_TEXT, s->output.data + from, n);
    if (r->n_logprobs >= 0 || r->return_tokens) {
        event->tokens = calloc(1, sizeof *event->tokens);
        if (!event->tokens) abort();
        event->n_tokens = 1;
        fill_token(event->tokens, s->output.data[s->said], logprob_of(s), r->n_logprobs);
    }
    s->said++;
}

/* Not faster than events are taken: no model is. */
static void flood(struct engine *e, struct sequence *s) {
    char text[FLOOD_BYTES];
    if (e->events) return;
    memset(text, 'x', sizeof text);
    s->n_generated++;
    post(e, s, ENGINE_TEXT, text, sizeof text);
}

static void step(struct engine *e, struct sequence *s) {
    const struct engine_request *r = s->request;
    if (s->cancelled) {
        end(e, s, FINISH_CANCELLED);
        return;
    }
    if (!s->started) start(e, s);
    if (!s->started || s->paused || s->mode == HOLD) return;
    if (s->mode == WAIT && !e->stats.draining) return;
    if (s->said == s->output.n && r->ignore_eos) s->said = 0;
    if (r->task != ENGINE_GENERATE || r->max_tokens < 0) {
        end(e, s, FINISH_LENGTH);
    } else if (s->mode == LATE) {
        fail(e, s, -E2BIG, "the prompt has too many tokens");
    } else if (s->mode == EXPIRE) {
        fail(e, s, -ETIMEDOUT, "the queue deadline has passed");
    } else if (s->mode == FAIL && s->said) {
        fail(e, s, -EIO, "the fake failed");
    } else if (r->max_tokens && s->n_generated >= r->max_tokens) {
        end(e, s, FINISH_LENGTH);
    } else if (s->mode == FLOOD) {
        flood(e, s);
    } else if (s->said == s->output.n || at_stop(s)) {
        if (s->stop >= 0 && r->keep_stop) say_token(e, s);
        end(e, s, FINISH_STOP);
    } else if (s->mode != GATE || e->permits > 0) {
        if (s->mode == GATE) e->permits--;
        say_token(e, s);
    }
}

static void free_sequence(struct sequence *s) {
    engine_request_free(s->request);
    text_deinit(&s->prompt);
    text_deinit(&s->output);
    free(s);
}

static void step_all(struct engine *e) {
    for (struct sequence **at = &e->sequences; *at;) {
        struct sequence *s = *at;
        step(e, s);
        if (s->over) {
            e->stats.paused -= s->paused;
            *at = s->next;
            free_sequence(s);
        } else {
            at = &s->next;
        }
    }
    e->stats.steps++;
}

static bool is_closing(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    bool closing = e->closing;
    pthread_mutex_unlock(&e->lock);
    return closing;
}

/* The line from the FIFO; false when the engine is closed first. */
static bool read_fifo(struct engine *e, char *line, size_t size) {
    ssize_t n = 0;
    struct pollfd fifo = {.fd = open(load_fifo, O_RDWR | O_CLOEXEC), .events = POLLIN};
    if (fifo.fd < 0) abort();
    while (n <= 0 && !is_closing(e))
        if (poll(&fifo, 1, 20) > 0) n = read(fifo.fd, line, size - 1);
    close(fifo.fd);
    line[n > 0 ? n : 0] = 0;
    line[strcspn(line, "\n")] = 0;
    return n > 0;
}

static bool load(struct engine *e) {
    char line[128];
    if (!read_fifo(e, line, sizeof line)) return false;
    bool ready = !strcmp(line, "ready");
    pthread_mutex_lock(&e->lock);
    e->stats.state = ready ? ENGINE_READY : ENGINE_BROKEN;
    e->stats.ready = ready;
    e->stats.failed = !ready;
    e->stats.load_done = e->stats.load_total;
    if (!ready) error_set(&e->why, -EIO, "%s", line);
    pthread_mutex_unlock(&e->lock);
    if (e->options.wake) e->options.wake(e->options.wake_arg);
    return ready;
}

static void *run(void *arg) {
    struct engine *e = arg;
    if (load_fifo && !load(e)) return NULL;
    pthread_mutex_lock(&e->lock);
    while (!e->closing) {
        e->changed = false;
        step_all(e);
        if (e->changed) {
            pthread_mutex_unlock(&e->lock);
            if (e->options.wake) e->options.wake(e->options.wake_arg);
            pthread_mutex_lock(&e->lock);
        } else {
            pthread_cond_wait(&e->news, &e->lock);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* -- The boundary -------------------------------------------------------------------------- */

int engine_open(struct engine **ret, struct source *src, const struct engine_options *options,
                struct error *err) {
    (void)src;
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return error_set(err, -ENOMEM, "out of memory");
    e->options = *options;
    e->end = &e->events;
    e->info = (struct engine_info){.architecture = "fake",
                                   .method = "none",
                                   .backend = "fake",
                                   .context = FAKE_ENGINE_CONTEXT,
                                   .vocab = FAKE_ENGINE_VOCAB,
                                   .hidden = FAKE_ENGINE_HIDDEN,
                                   .has_tokenizer = true,
                                   .has_chat_template = true};
    sampler_defaults(&e->info.sampling);
    e->stats = (struct engine_stats){.ready = !load_fifo,
                                     .state = load_fifo ? ENGINE_LOADING : ENGINE_READY,
                                     .load_done = load_fifo ? 250 : 1000,
                                     .load_total = 1000,
                                     .max_running = options->max_running,
                                     .max_waiting = options->max_waiting,
                                     .kv_blocks = 8,
                                     .kv_blocks_free = 8};
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->news, NULL);
    if (pthread_create(&e->thread, NULL, run, e)) abort();
    *ret = e;
    return 0;
}

void engine_close(struct engine *e) {
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->closing = true;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    while (e->sequences) {
        struct sequence *s = e->sequences;
        e->sequences = s->next;
        free_sequence(s);
    }
    while (e->events) {
        struct engine_event *event = e->events;
        e->events = event->next;
        engine_event_free(event);
    }
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->news);
    free(e);
}

const struct engine_info *engine_get_info(const struct engine *e) { return &e->info; }

/* How far the deadlines are apart, which does not depend on the clock. */
static void tell_limits(struct text *out, const struct engine_claim *claim) {
    text_addf(out, "%d%d%d %lld %lld", claim->queue_ns != 0, claim->first_ns != 0,
              claim->total_ns != 0, (long long)(claim->first_ns - claim->queue_ns) / 1000000,
              (long long)(claim->total_ns - claim->first_ns) / 1000000);
}

static void set_output(struct sequence *s, const char *text, size_t n) {
    const struct engine_request *r = s->request;
    const struct sampler_params *p = &r->sampling;
    if (!strncmp(text, "@seed", 5) || !strncmp(text, "@best", 5)) {
        text_addf(&s->output, "%llu", (unsigned long long)r->seed);
    } else if (!strncmp(text, "@params", 7)) {
        text_addf(&s->output, "%g %g %d %g %g %g %g %d %d %d", (double)p->temperature,
                  (double)p->top_p, p->top_k, (double)p->min_p, (double)p->frequency_penalty,
                  (double)p->presence_penalty, (double)p->repetition_penalty, p->n_bias,
                  r->min_tokens, r->ignore_eos);
    } else if (!strncmp(text, "@claim", 6)) {
        text_addf(&s->output, "%d %d %d %d %d", r->claim.priority, r->claim.salt != 0,
                  r->truncate_prompt, r->no_special, r->keep_special);
    } else if (!strncmp(text, "@tenant", 7)) {
        text_addf(&s->output, "%d %g %llx", r->claim.tenant, (double)r->claim.weight,
                  (unsigned long long)r->claim.salt);
    } else if (!strncmp(text, "@limits", 7)) {
        tell_limits(&s->output, &r->claim);
    } else if (s->mode == GATE) {
        text_adds(&s->output, "abcdefghijklmnopqrstuvwxyz");
    } else {
        text_add(&s->output, text, n);
    }
}

static enum mode mode_of(const char *text) {
    static const struct {
        const char *word;
        enum mode mode;
    } modes[] = {{"@hold", HOLD}, {"@queue", QUEUE}, {"@gate", GATE}, {"@flood", FLOOD},
                 {"@late", LATE}, {"@fail", FAIL},   {"@wait", WAIT}, {"@expire", EXPIRE}};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strncmp(text, modes[i].word, strlen(modes[i].word))) return modes[i].mode;
    return ECHO;
}

static void read_prompt(struct engine *e, struct sequence *s) {
    const struct engine_request *r = s->request;
    struct text text = {0};
    long long busy_tokens = e->stats.waiting_tokens;
    size_t n = 0;
    if (r->text) {
        text_add(&text, r->text, n = r->text_len);
    } else if (r->ids) {
        for (size_t i = 0; i < r->n_ids; i++) text_addf(&text, "%c", (char)r->ids[i]);
        n = r->n_ids;
    } else {
        for (int i = 0; i < r->n_messages; i++) n += strlen(r->messages[i].content);
        text_adds(&text, r->messages[r->n_messages - 1].content);
    }
    text_add(&text, "", 0);
    s->mode = mode_of(text.data);
    if (!strncmp(text.data, "@busy ", 6))
        sscanf(text.data + 6, "%lld %lf %lf", &busy_tokens, &e->stats.prefill_rate,
               &e->stats.step_seconds);
    e->stats.waiting_tokens = busy_tokens;
    if (!strncmp(text.data, "@open ", 6)) e->permits += atoi(text.data + 6);
    set_output(s, text.data, text.n);
    size_t cut = r->truncate_prompt > 0 && text.n > (size_t)r->truncate_prompt
                     ? text.n - (size_t)r->truncate_prompt
                     : 0;
    text_add(&s->prompt, text.data + cut, text.n - cut);
    s->n_prompt = (int)(n - cut);
    text_deinit(&text);
}

static int refuse(const struct engine *e, const struct engine_request *request, struct error *err) {
    const char *text = request->text ? request->text : "";
    if (!e->stats.ready) return error_set(err, -EBUSY, "loading");
    if (e->stats.draining) return error_set(err, -ESHUTDOWN, "draining");
    if (!strncmp(text, "@bad", 4)) return error_set(err, -EINVAL, "prompt: it is bad");
    if (!strncmp(text, "@long", 5)) return error_set(err, -E2BIG, "the prompt is too long");
    if (!strncmp(text, "@full", 5) || e->stats.waiting > e->options.max_waiting)
        return error_set(err, -EAGAIN, "the queue is full");
    return 0;
}

/* The lock is held; every request has been looked at by refuse(). */
static void add_sequence(struct engine *e, struct sequence *s, struct engine_request *request,
                         uint64_t *ret_ticket) {
    s->request = request;
    s->stop = s->stop_id = -1;
    s->ticket = *ret_ticket = ++e->serial;
    read_prompt(e, s);
    struct sequence **at = &e->sequences;
    while (*at) at = &(*at)->next;
    *at = s;
    e->stats.waiting++;
    e->stats.requests++;
}

int engine_submit_all(struct engine *e, uint64_t *tickets, struct engine_request **requests, int n,
                      struct error *err) {
    int r = 0;
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < n && r == 0; i++) r = refuse(e, requests[i], err);
    for (int i = 0; i < n && r == 0; i++) {
        struct sequence *s = calloc(1, sizeof *s);
        if (!s) abort();
        add_sequence(e, s, requests[i], &tickets[i]);
    }
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
    return r;
}

int engine_submit(struct engine *e, uint64_t *ret_ticket, struct engine_request *request,
                  struct error *err) {
    return engine_submit_all(e, ret_ticket, &request, 1, err);
}

enum engine_state engine_get_state(struct engine *e, struct error *err) {
    pthread_mutex_lock(&e->lock);
    enum engine_state state = e->stats.state;
    if (state == ENGINE_BROKEN && err) *err = e->why;
    pthread_mutex_unlock(&e->lock);
    return state;
}

void engine_pause(struct engine *e, uint64_t ticket, bool paused) {
    pthread_mutex_lock(&e->lock);
    for (struct sequence *s = e->sequences; s; s = s->next)
        if (s->ticket == ticket && s->paused != paused) {
            s->paused = paused;
            e->stats.paused += paused ? 1 : -1;
        }
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
}

void engine_cancel(struct engine *e, uint64_t ticket) {
    pthread_mutex_lock(&e->lock);
    for (struct sequence *s = e->sequences; s; s = s->next)
        if (s->ticket == ticket) s->cancelled = true;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
}

struct engine_event *engine_poll(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    struct engine_event *events = e->events;
    e->events = NULL;
    e->end = &e->events;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
    return events;
}

void engine_get_stats(struct engine *e, struct engine_stats *stats) {
    pthread_mutex_lock(&e->lock);
    *stats = e->stats;
    pthread_mutex_unlock(&e->lock);
}

void engine_drain(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    e->stats.draining = true;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
}

int engine_tokenize(const struct engine *e, int32_t **ret_ids, size_t *ret_n, const char *text,
                    size_t n, bool add_special, bool parse_special, struct error *err) {
    (void)e;
    (void)add_special;
    (void)parse_special;
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    if (!ids) return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) ids[i] = (unsigned char)text[i];
    *ret_ids = ids;
    *ret_n = n;
    return 0;
}

const char *engine_token_text(const struct engine *e, int32_t id, size_t *ret_n) {
    static char bytes[FAKE_ENGINE_VOCAB];
    (void)e;
    if (id < 0 || id >= FAKE_ENGINE_VOCAB) return NULL;
    bytes[id] = (char)id;
    *ret_n = 1;
    return &bytes[id];
}

void source_close(struct source *source) { (void)source; }

int model_source_open(struct source **ret, const char *model, struct error *err) {
    if (!strcmp(model, "missing")) return error_set(err, -ENOENT, "missing: no such model");
    if (!strncmp(model, "load:", 5)) load_fifo = model + 5;
    *ret = NULL;
    return 0;
}
