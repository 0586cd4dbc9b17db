/* engine.h - the loaded model as a service: requests go in, text comes out.
 *
 * The engine is one thread that owns a model, its KV blocks and every sequence. Callers hand
 * over requests and get events; two mailboxes are all that is shared. A caller never sees a
 * tensor, and the engine never sees a socket.
 *
 * Owns      the thread, the model, requests after a successful submit, events until polled.
 * Borrows   the wake function's argument until engine_close().
 * Thread    submit, cancel, pause, poll, stats, drain: any one thread (the event loop). wake() is
 *           called on the engine thread and must only poke the loop.
 * Fails     submit: -EAGAIN queue full, -EINVAL names the field, -E2BIG prompt too long,
 *           -ESHUTDOWN draining, -EIO the model has failed, -EBUSY it is loading still. A request
 *           that fails later ends with ENGINE_FAILED (-ETIMEDOUT: a deadline; text says which).
 * Cost      submit and poll: a short lock. Events of one step are one wake.
 *
 * Every submitted request ends with exactly one ENGINE_DONE or ENGINE_FAILED event, also when
 * it is cancelled and when the engine closes. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/sampler.h"

struct error;
struct engine;
struct source;

enum engine_kv { ENGINE_KV_F16, ENGINE_KV_F32, ENGINE_KV_INT8 /* CPU alone */ };

struct engine_options {
    const char *backend;     /* see backend_options; NULL = auto */
    const char *level;       /* CPU instruction set; NULL = auto */
    int n_threads;           /* 0 = all */
    int n_devices;           /* GPUs that share the model; 0 = one */
    int act_bits;            /* see model_options; 0 = as the checkpoint says */
    int max_context;         /* positions per sequence; 0 = the model's */
    int max_running;         /* sequences computed together */
    int max_waiting;         /* sequences queued behind them */
    int step_tokens;         /* token budget of a step */
    int64_t kv_tokens;       /* positions in the KV pool; 0 = enough for max_running at a quarter
                                of max_context each, and at least one full context */
    enum engine_kv kv;       /* what keys and values are kept in */
    bool no_prefix_cache;    /* never reuse keys and values of equal prompt beginnings */
    int draft_tokens;        /* prompt-lookup speculation: tokens guessed a step; 0 = off */
    int64_t memory_limit;    /* bytes for weights, KV pool and work areas together; 0 = none.
                                The KV pool takes what is left, as far as it is of use, unless
                                kv_tokens fixes it */
    double gpu_fraction;     /* of a device's memory that may be taken, by everybody together;
                                0 = ENGINE_GPU_FRACTION. The KV pool takes what the rest leaves,
                                as far as it is of use, unless kv_tokens fixes it */
    bool null;               /* no model is run: every sequence gets null_token, again and again */
    int null_token;          /* -1: some visible token */
    double null_rate;        /* tokens a second of each sequence; 0 = as fast as it goes */
    bool async;              /* engine_open() returns at once, see engine_get_state() */
    void (*wake)(void *arg); /* events are waiting; may be NULL */
    void *wake_arg;
};

/* What is left is for the driver: machine code, graphs. */
#define ENGINE_GPU_FRACTION 0.9

enum {
    ENGINE_MAX_STOPS = 16,
    ENGINE_MAX_STOP_IDS = 16,
    ENGINE_MAX_LOGPROBS = 20,
    ENGINE_MAX_TENANTS = 1024
};

enum engine_task {
    ENGINE_GENERATE,
    ENGINE_EMBED,   /* the prompt's final hidden states, pooled: DONE has the vector */
    ENGINE_TOKENIZE /* no model is run: DONE has the prompt's token ids */
};

enum engine_pooling { POOLING_LAST, POOLING_MEAN };

/* Whose request it is and how urgent. All 0: one among equals, no limits. */
struct engine_claim {
    int tenant;       /* below ENGINE_MAX_TENANTS; each gets its share of tokens */
    float weight;     /* of that tenant's share; 0 = 1 */
    int priority;     /* lower runs first; equal ones share fairly */
    uint64_t salt;    /* prompt beginnings are shared among equal salts only */
    int64_t queue_ns; /* CLOCK_MONOTONIC deadlines, 0 = none: of the first step, */
    int64_t first_ns; /* of the first token, */
    int64_t total_ns; /* of the end */
};

struct engine_message { /* one chat message; strings are the request's */
    char *role, *content;
};

/* What to generate. Filled by the caller, freed by engine_request_free(). */
struct engine_request {
    enum engine_task task;
    enum engine_pooling pooling; /* of ENGINE_EMBED */
    bool normalize;              /* the vector has length 1 */
    struct engine_claim claim;

    /* Exactly one of the three: */
    char *text; /* prompt text, text_len bytes, UTF-8 */
    size_t text_len;
    int32_t *ids; /* prompt as token ids */
    size_t n_ids;
    struct engine_message *messages; /* a chat, through the model's template */
    int n_messages;

    struct sampler_params sampling; /* sampling.bias is the request's too (malloc) */
    uint64_t seed;
    int max_tokens;        /* 0 = up to the context length; -1 = none: the prompt is all */
    int min_tokens;        /* end tokens are not sampled before */
    bool ignore_eos;       /* end tokens are ordinary */
    bool echo;             /* the prompt's text comes first */
    int n_logprobs;        /* -1 = none, 0 = the token's own, n = and the n best; a model without a
                        tokenizer always gives tokens */
    int n_prompt_logprobs; /* the same of the prompt's tokens, in one ENGINE_PROMPT event */
    int truncate_prompt;   /* only the last that many tokens of the prompt count; 0 = all,
                              -1 = what leaves room for max_tokens */
    bool no_special;       /* text prompts: no beginning-of-text token is added */
    bool keep_special;     /* special tokens have text in the answer */
    bool return_tokens;    /* ENGINE_TEXT has tokens also without log probabilities, and
                              ENGINE_STARTED the prompt's ids */
    char *stops[ENGINE_MAX_STOPS];
    int n_stops;
    bool keep_stop;                        /* the stop string stays in the text */
    int32_t stop_ids[ENGINE_MAX_STOP_IDS]; /* tokens that end it like end tokens */
    int n_stop_ids;
    uint64_t tag; /* the caller's; comes back in every event */
};

struct engine_request *engine_request_new(void);          /* defaults everywhere; NULL: no memory */
void engine_request_free(struct engine_request *request); /* NULL is allowed */

enum engine_event_kind {
    ENGINE_STARTED, /* admitted: n_prompt is known */
    ENGINE_PROMPT,  /* tokens of the prompt with log probabilities (the first has none: NaN) */
    ENGINE_TEXT,    /* text and/or tokens */
    ENGINE_DONE,    /* finish says why; n_prompt and n_generated are final */
    ENGINE_FAILED   /* code and text (the message) say why */
};

enum engine_finish { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED };

struct engine_token { /* one token, when logprobs or tokens were asked for */
    int32_t id;
    bool hidden; /* a special token: its text is left out of the answer's */
    float logprob;
    int rank; /* 1 is the model's best; 0 = unknown */
    int n_top;
    int32_t top_ids[ENGINE_MAX_LOGPROBS];
    float top_logprobs[ENGINE_MAX_LOGPROBS];
};

struct engine_event {
    struct engine_event *next;
    enum engine_event_kind kind;
    uint64_t ticket, tag;
    enum engine_finish finish;
    int code; /* negative errno */
    int n_prompt, n_generated;
    int n_cached;                /* of n_prompt: found computed */
    int stop;                    /* what FINISH_STOP met: index in stops, or -1 (an end token) */
    int stop_id;                 /* the end token, or -1 */
    int64_t queued_ns, first_ns; /* CLOCK_MONOTONIC of the first step and token; 0 = not yet */
    float *vector;               /* (n_vector) of ENGINE_EMBED */
    int n_vector;
    int32_t *ids; /* (n_ids) of ENGINE_TOKENIZE, and of ENGINE_STARTED when asked for */
    size_t n_ids;
    char *text; /* text_len bytes of complete UTF-8 characters, NUL after; may be empty */
    size_t text_len;
    struct engine_token *tokens; /* (n_tokens) */
    int n_tokens;
};

enum engine_state { ENGINE_LOADING, ENGINE_READY, ENGINE_BROKEN };

struct engine_stats {
    bool ready, draining, failed;
    enum engine_state state;
    int64_t load_done, load_total; /* bytes of weights read */
    int64_t waiting_tokens;        /* prompt tokens not computed yet, of all requests (estimated
                                      from bytes before they are tokenized) */
    double prefill_rate;           /* prompt tokens a second, lately; 0 = unknown */
    double step_seconds;           /* of a step that only decodes, lately; 0 = unknown */
    int paused;
    int64_t kv_blocks_cached;            /* of kv_blocks_free: hold a prompt beginning */
    int64_t prefix_queries, prefix_hits; /* tokens looked up in the prefix cache, found */
    int64_t draft_tokens, draft_accepted;
    int64_t timeouts;
    int running, waiting, max_running, max_waiting;
    int64_t kv_blocks, kv_blocks_free;
    int64_t requests, finished, failures, cancelled, preemptions;
    int64_t prompt_tokens, generated_tokens, steps;
    int64_t last_step_ns; /* CLOCK_MONOTONIC at the end of the last step: the heartbeat */
    double busy_seconds;  /* time inside steps */
};

/* What a model is, for /v1/models, start lines and `inspect`; strings live as long as the engine. */
struct engine_info {
    const char *architecture, *method,
        *backend;             /* "llama", "gptqt" or "none", "cpu (avx512, 2 threads)" */
    const char *backend_note; /* why auto took the CPU; "" otherwise */
    int bits, group;          /* 0 when dense */
    int context, vocab, n_layers, hidden;
    bool has_tokenizer, has_chat_template;
    size_t weight_bytes, kv_bytes, work_bytes; /* packed weights, KV pool, all that a step needs */
    int kv_block_tokens;
    size_t kv_token_bytes;            /* of one position */
    size_t device_total, device_free; /* memory of a device, once all is taken; 0: the host's */
    size_t device_work;               /* buffers and working rooms there */
    struct sampler_params sampling;   /* generation_config.json's defaults */
};

/* Loads the model and starts the thread; takes src on success. Returns once ready; with
 * options.async at once, and then wake() is called when the state changes. */
int engine_open(struct engine **ret, struct source *src, const struct engine_options *options,
                struct error *err);

/* Cancels what runs, stops the thread, frees everything, events that were not polled too: poll
 * first. NULL is allowed. */
void engine_close(struct engine *e);

/* BROKEN: why it could not be loaded, or what failed, is in err. Info, tokenize and token_text
 * are for READY only. */
enum engine_state engine_get_state(struct engine *e, struct error *err);

const struct engine_info *engine_get_info(const struct engine *e);

/* Takes request on success. */
int engine_submit(struct engine *e, uint64_t *ret_ticket, struct engine_request *request,
                  struct error *err);

/* All of them or none; takes all requests on success. Fills tickets (n). */
int engine_submit_all(struct engine *e, uint64_t *tickets, struct engine_request **requests, int n,
                      struct error *err);

/* A paused sequence gets no steps, until it is woken: its reader cannot keep up. */
void engine_pause(struct engine *e, uint64_t ticket, bool paused);

/* The request ends within a step with FINISH_CANCELLED; unknown tickets are ignored. */
void engine_cancel(struct engine *e, uint64_t ticket);

/* Takes all waiting events, oldest first; NULL when there are none. */
struct engine_event *engine_poll(struct engine *e);
void engine_event_free(struct engine_event *event); /* one event */

void engine_get_stats(struct engine *e, struct engine_stats *stats);

/* New requests are refused from now on; running ones finish. */
void engine_drain(struct engine *e);

/* Token ids of text, on the calling thread; *ret_ids is malloc'ed. */
int engine_tokenize(const struct engine *e, int32_t **ret_ids, size_t *ret_n, const char *text,
                    size_t n, bool add_special, bool parse_special, struct error *err);

/* The text piece of one token id, raw bytes borrowed from the tokenizer; NULL when unknown. */
const char *engine_token_text(const struct engine *e, int32_t id, size_t *ret_n);

#endif
