/* settings.h - turns flags and environment into the settings of `gptqt serve`.
 *
 * Owns      nothing; strings point into argv and the environment.
 * Borrows   argv and the environment for the life of the process.
 * Thread    main, before any other starts.
 * Fails     -EINVAL with a line naming the flag or variable.
 * Cost      one pass over argv.
 *
 * One row of a table is one setting: its flag, its variable GPTQT_<FLAG>, range and help text.
 * A flag beats its variable, which beats the default; every value is checked whatever its
 * source. */
#ifndef SERVER_SETTINGS_H
#define SERVER_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct error;

struct settings {
    const char *model, *served_model_name; /* the names in /v1/models; NULL = from the model */
    const char *engine;                    /* "null": no model is run */
    const char *any_model, *unknown_fields, *pooling;
    const char *host, *backend, *cpu_level, *act_bits, *kv, *log_level, *log_format;
    const char *cors; /* allowed origin; NULL = none */
    int64_t port, threads, tensor_parallel, max_context, max_running, max_waiting, step_tokens,
        kv_tokens;
    int64_t speculate; /* tokens guessed a step */
    int64_t null_rate; /* tokens a second of a null engine's sequences; 0 = no limit */
    int64_t max_uploads, memory_limit;                    /* bytes; 0 memory = no limit */
    int64_t max_connections, max_body, max_prompt_tokens; /* 0 prompt tokens = the context */
    int64_t request_timeout, shutdown_timeout;            /* seconds; 0 requests = no limit */
    const char *unix_socket, *unix_socket_mode, *tls_cert, *tls_key; /* NULL = none */
    int64_t header_timeout, body_timeout;                            /* seconds; 0 = no limit */
    int64_t drain_delay, stall_timeout;                              /* seconds; 0 stall = never */
    int64_t failure_delay;                                           /* seconds */
    const char *api_keys, *api_key;             /* a file, one key; NULL = everybody may ask */
    int64_t max_waiting_tokens, max_ttft;       /* ms; 0 = no limit */
    int64_t queue_timeout, first_token_timeout; /* seconds; 0 = no limit */
    const char *log_level_file;
    const char *gpu_memory_fraction; /* a number in (0, 1] */
    bool help;                       /* was asked for and printed */
};

int settings_parse(struct settings *ret, int argc, char **argv, struct error *err);

/* Adds "name=value" of every setting to the stream, in one line. */
void settings_print(const struct settings *settings, FILE *out);

#endif
