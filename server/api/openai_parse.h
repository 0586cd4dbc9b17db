/* openai_parse.h - turns the JSON body of a request into checked plain values.
 *
 * Owns      struct openai_request with everything in it; openai_request_free() releases it.
 * Borrows   the body during the call, and may overwrite bytes of it.
 * Thread    any; pure: no clock, no engine, no socket.
 * Fails     with an api_error whose param is the field's path.
 * Cost      O(body); memory O(body), bounded by the limits.
 *
 * Each known field is one row of the table in openai_fields.h. A field without a row is an
 * error in strict mode; otherwise it is taken, and its name told to the client. A row may also
 * refuse a field whose silent loss would change the answer's meaning. null counts as absent. */
#ifndef SERVER_API_OPENAI_PARSE_H
#define SERVER_API_OPENAI_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

struct api_error;

enum openai_kind {
    OPENAI_COMPLETION,
    OPENAI_CHAT,
    OPENAI_RESPONSE,
    OPENAI_EMBEDDING,
    OPENAI_TOKENIZE,
    OPENAI_DETOKENIZE,
    OPENAI_KINDS
};

enum {
    OPENAI_MAX_ID = 64,
    OPENAI_MAX_IGNORED = 176,     /* bytes; more names are an ellipsis */
    OPENAI_MAX_CHOICES = 128,     /* prompts times n: each is a sequence in the engine */
    OPENAI_MAX_INPUTS = 2048,     /* of one request for embeddings */
    OPENAI_MAX_COPIES = 64 << 20, /* bytes of a prompt times n, with 96 for each message */
    OPENAI_MAX_DEPTH = 64,
    OPENAI_MAX_CONTAINERS = 1 << 14,
    OPENAI_MAX_VALUES = 400000, /* about 40 bytes of heap each */
    OPENAI_MAX_HEAP = 40 << 20  /* bytes that jansson may take for one body */
};

struct openai_limits {
    const char *models;             /* the served names, see model_names.h */
    bool any_model;                 /* another one is taken, too */
    struct sampler_params sampling; /* defaults */
    size_t max_prompt_tokens;       /* for prompts given as ids */
    int vocab;                      /* ids are below */
    size_t max_choices;             /* places in the engine; 0 = OPENAI_MAX_CHOICES */
    int hidden;                     /* elements of an embedding */
    enum engine_pooling pooling;    /* when none is asked for */
    bool strict;                    /* a field that is not in the table is an error */
};

struct openai_prompt { /* text or ids */
    char *text;
    size_t text_len;
    int32_t *ids;
    size_t n_ids;
};

struct openai_request {
    enum openai_kind kind;
    struct openai_prompt *prompts; /* (n_prompts); completions */
    size_t n_prompts;
    struct engine_message *messages; /* (n_messages); chat */
    int n_messages;
    struct sampler_params sampling; /* without bias */
    struct sampler_bias *bias;      /* (n_bias) */
    int n_bias;
    bool has_seed, stream, include_usage, echo, ignore_eos, logprobs_on;
    uint64_t seed;
    int n, best_of, max_tokens, min_tokens; /* as the engine's: 0 = up to the context, -1 = none */
    int max_completion_tokens;              /* 0 = absent; max_tokens is the same then */
    int n_logprobs, n_prompt_logprobs;      /* -1 = none */
    char *stops[ENGINE_MAX_STOPS];
    int n_stops;
    int32_t stop_ids[ENGINE_MAX_STOP_IDS];
    int n_stop_ids;
    enum engine_task task;
    enum engine_pooling pooling;
    bool normalize;
    bool keep_stop, keep_special, no_special; /* as the engine's */
    bool return_token_ids, continuous_usage;
    int truncate_prompt; /* 0 = all of it */
    int priority;
    uint64_t salt;
    char request_id[OPENAI_MAX_ID + 1]; /* "" = none */
    char *instructions;                 /* of a response; are in messages, too */
    bool base64, return_token_strs;
    int32_t *scanned; /* (n_scanned) the prompt's ids, until a prompt takes them; else NULL */
    size_t n_scanned;
    char ignored[OPENAI_MAX_IGNORED]; /* "a, b": fields that were there for nothing */
};

int openai_parse(struct openai_request **ret, enum openai_kind kind, char *body, size_t n,
                 const struct openai_limits *limits, struct api_error *err);

/* The field that says what to continue: "prompt", "messages", "input" or "tokens". */
const char *openai_source_name(enum openai_kind kind);

void openai_request_free(struct openai_request *r); /* NULL is allowed */

#endif
