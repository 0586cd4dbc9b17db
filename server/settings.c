#include "server/settings.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

struct setting {
    const char *name, *arg, *doc;
    size_t offset;
    const char *text;         /* default of a string; its row has min == max */
    const char *choices;      /* "|a|b|"; NULL = any text */
    int64_t number, min, max; /* default and range of a number */
};

#define NUMBER(field) offsetof(struct settings, field), NULL, NULL
#define STRING(field) offsetof(struct settings, field)

static const struct setting table[] = {
    {"model", "MODEL", "checkpoint to serve, or 'builtin'", STRING(model), "builtin", NULL, 0, 0,
     0},
    {"served-model-name", "NAMES", "the model's names in the API, separated by commas",
     STRING(served_model_name), NULL, NULL, 0, 0, 0},
    {"any-model", "YES", "take every name of a model in requests: yes, no", STRING(any_model), "no",
     "|yes|no|", 0, 0, 0},
    {"unknown-fields", "HOW", "fields of requests that are not known: ignore, strict",
     STRING(unknown_fields), "ignore", "|ignore|strict|", 0, 0, 0},
    {"pooling", "HOW", "which tokens embeddings are made of: last, mean", STRING(pooling), "last",
     "|last|mean|", 0, 0, 0},
    {"host", "ADDRESS", "address to listen on", STRING(host), "127.0.0.1", NULL, 0, 0, 0},
    {"port", "N", "port to listen on; 0 takes a free one", NUMBER(port), 8080, 0, 65535},
    {"unix-socket", "PATH", "listen on this socket in place of host and port", STRING(unix_socket),
     NULL, NULL, 0, 0, 0},
    {"unix-socket-mode", "OCTAL", "who may connect to it, as with chmod", STRING(unix_socket_mode),
     "600", "|600|660|666|", 0, 0, 0},
    {"tls-cert", "FILE", "certificate chain in PEM; the port speaks TLS", STRING(tls_cert), NULL,
     NULL, 0, 0, 0},
    {"tls-key", "FILE", "the certificate's key in PEM", STRING(tls_key), NULL, NULL, 0, 0, 0},
    {"engine", "KIND", "model, or null: every sequence gets one word again and again",
     STRING(engine), "model", "|model|null|", 0, 0, 0},
    {"null-rate", "N", "tokens a second of each sequence of the null engine; 0 is no limit",
     NUMBER(null_rate), 0, 0, 1000000000},
    {"speculate", "N", "tokens guessed in each step from what the text said before; 0 is off",
     NUMBER(speculate), 0, 0, 32},
    {"backend", "NAME", "where the model runs: auto (cuda where there is one), cpu, cuda, cuda-emu",
     STRING(backend), "auto", NULL, 0, 0, 0},
    {"tensor-parallel", "N", "GPUs that share the model, each with a part of every matrix",
     NUMBER(tensor_parallel), 1, 1, 8},
    {"cpu-level", "NAME", "CPU instructions: auto, ref, avx2, avx512, amx, neon", STRING(cpu_level),
     NULL, NULL, 0, 0, 0},
    {"act-bits", "N",
     "inputs of binary-coded layers: 16, or rounded to 8 or 4; auto: the checkpoint's",
     STRING(act_bits), "auto", "|auto|16|8|4|", 0, 0, 0},
    {"threads", "N", "compute threads; 0 takes all processors", NUMBER(threads), 0, 0, 1024},
    {"max-context", "N", "tokens of one sequence; 0 takes the model's", NUMBER(max_context), 0, 0,
     1 << 24},
    {"max-running", "N", "sequences computed together", NUMBER(max_running), 32, 1, 4096},
    {"max-waiting", "N", "sequences queued; more get status 429", NUMBER(max_waiting), 256, 0,
     1 << 20},
    {"step-tokens", "N", "token budget of one step", NUMBER(step_tokens), 512, 1, 1 << 20},
    {"kv-tokens", "N", "tokens the KV cache holds; 0 chooses", NUMBER(kv_tokens), 0, 0,
     (int64_t)1 << 32},
    {"gpu-memory-fraction", "FRACTION",
     "of a GPU's memory that may be taken: the KV cache gets what the rest leaves",
     STRING(gpu_memory_fraction), "0.9", NULL, 0, 0, 0},
    {"kv", "TYPE", "numbers in the KV cache: f16, f32, int8", STRING(kv), "f16", "|f16|f32|int8|",
     0, 0, 0},
    {"max-connections", "N", "open connections; more get status 503", NUMBER(max_connections), 1024,
     1, 1 << 20},
    {"max-body", "BYTES", "largest request body", NUMBER(max_body), 2 << 20, 1024, 1 << 30},
    {"max-uploads", "BYTES", "bodies of all requests together; more get status 503",
     NUMBER(max_uploads), 256 << 20, 1024, (int64_t)1 << 40},
    {"memory-limit", "BYTES", "what the process may take, the model too; 0 is no limit",
     NUMBER(memory_limit), 0, 0, (int64_t)1 << 50},
    {"max-prompt-tokens", "N", "longest prompt; 0 takes the context length",
     NUMBER(max_prompt_tokens), 0, 0, 1 << 24},
    {"request-timeout", "SECONDS", "longest life of a request; 0 is no limit",
     NUMBER(request_timeout), 600, 0, 86400},
    {"shutdown-timeout", "SECONDS", "what running requests get after SIGTERM",
     NUMBER(shutdown_timeout), 30, 0, 86400},
    {"header-timeout", "SECONDS", "how long a request's headers may take to come; 0 is no limit",
     NUMBER(header_timeout), 10, 0, 86400},
    {"body-timeout", "SECONDS", "how long a request's body may take to come; 0 is no limit",
     NUMBER(body_timeout), 60, 0, 86400},
    {"drain-delay", "SECONDS", "how long to serve on after SIGTERM, not ready any more",
     NUMBER(drain_delay), 0, 0, 3600},
    {"stall-timeout", "SECONDS",
     "an engine with work and no step for so long is unhealthy; 0: never", NUMBER(stall_timeout),
     60, 0, 86400},
    {"failure-delay", "SECONDS",
     "how long to answer, unhealthy, after the engine has failed; then the status is 3",
     NUMBER(failure_delay), 10, 0, 86400},
    {"queue-timeout", "SECONDS", "longest wait of a request for its first step; 0 is no limit",
     NUMBER(queue_timeout), 0, 0, 86400},
    {"first-token-timeout", "SECONDS", "longest wait for a first token; 0 is no limit",
     NUMBER(first_token_timeout), 0, 0, 86400},
    {"max-waiting-tokens", "N", "prompt tokens queued; more get status 429; 0 is no limit",
     NUMBER(max_waiting_tokens), 0, 0, (int64_t)1 << 40},
    {"max-ttft", "MS", "predicted time to a first token over which requests get status 429",
     NUMBER(max_ttft), 0, 0, 86400000},
    {"api-keys", "FILE", "only who shows one of these keys may ask", STRING(api_keys), NULL, NULL,
     0, 0, 0},
    {"api-key", "KEY", "likewise, one key; better as GPTQT_API_KEY, as others see flags",
     STRING(api_key), NULL, NULL, 0, 0, 0},
    {"log-level-file", "FILE", "where SIGHUP finds a new log level", STRING(log_level_file), NULL,
     NULL, 0, 0, 0},
    {"cors", "ORIGIN", "let pages of this origin use the API", STRING(cors), NULL, NULL, 0, 0, 0},
    {"log-level", "LEVEL", "error, warn, info, debug", STRING(log_level), "info",
     "|error|warn|info|debug|", 0, 0, 0},
    {"log-format", "FORMAT", "lines of the log: text, json", STRING(log_format), "text",
     "|text|json|", 0, 0, 0},
};

enum { N_SETTINGS = sizeof table / sizeof *table, KEY_BASE = 256, KEY_HELP = 'h' };

static bool is_text(const struct setting *s) { return s->min == s->max; }

static const char **text_at(struct settings *c, const struct setting *s) {
    return (const char **)(void *)((char *)c + s->offset);
}

static int64_t *number_at(struct settings *c, const struct setting *s) {
    return (int64_t *)(void *)((char *)c + s->offset);
}

/* Above 0, up to 1. */
static bool is_fraction(const char *value) {
    char *end;
    double f = strtod(value, &end);
    return end > value && !*end && !isspace((unsigned char)*value) && f > 0 && f <= 1;
}

static int set_text(struct settings *c, const struct setting *s, const char *value, const char *who,
                    struct error *err) {
    if (!*value) return error_set(err, -EINVAL, "%s must not be empty", who);
    /* Values go into headers and log lines. */
    for (const char *p = value; *p; p++)
        if ((unsigned char)*p < ' ')
            return error_set(err, -EINVAL, "%s must not hold control characters", who);
    if (s->choices) {
        char quoted[64];
        snprintf(quoted, sizeof quoted, "|%s|", value);
        if (!strstr(s->choices, quoted) || strchr(value, '|'))
            return error_set(err, -EINVAL, "%s: '%.64s' is not one of %s", who, value, s->choices);
    }
    if (s->arg && !strcmp(s->arg, "FRACTION") && !is_fraction(value))
        return error_set(err, -EINVAL, "%s: '%.64s' is not above 0 and at most 1", who, value);
    *text_at(c, s) = value;
    return 0;
}

/* 64K, 2M, 8G; what would not fit any range stays out of all. */
static long long scale(long long number, char **end) {
    static const char units[] = "KMG";
    const char *unit = **end ? strchr(units, toupper((unsigned char)**end)) : NULL;
    if (!unit) return number;
    ++*end;
    int shift = 10 * (int)(unit - units + 1);
    return number > LLONG_MAX >> shift || number < 0 ? LLONG_MAX : number << shift;
}

static int set_number(struct settings *c, const struct setting *s, const char *value,
                      const char *who, struct error *err) {
    char *end;
    errno = 0;
    long long number = strtoll(value, &end, 10);
    if (end > value && !strcmp(s->arg, "BYTES")) number = scale(number, &end);
    if (errno || end == value || *end || isspace((unsigned char)*value))
        return error_set(err, -EINVAL, "%s: '%.64s' is not a whole number", who, value);
    if (number < s->min || number > s->max)
        return error_set(err, -EINVAL, "%s: %lld is outside %lld..%lld", who, number,
                         (long long)s->min, (long long)s->max);
    *number_at(c, s) = number;
    return 0;
}

static int set(struct settings *c, const struct setting *s, const char *value, const char *who,
               struct error *err) {
    return is_text(s) ? set_text(c, s, value, who, err) : set_number(c, s, value, who, err);
}

static void set_defaults(struct settings *c) {
    *c = (struct settings){0};
    for (int i = 0; i < N_SETTINGS; i++) {
        if (is_text(&table[i]))
            *text_at(c, &table[i]) = table[i].text;
        else
            *number_at(c, &table[i]) = table[i].number;
    }
}

static int read_environment(struct settings *c, struct error *err) {
    for (int i = 0; i < N_SETTINGS; i++) {
        char name[64] = "GPTQT_";
        size_t n = strlen(name);
        for (const char *p = table[i].name; *p && n + 1 < sizeof name; p++)
            name[n++] = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
        const char *value = getenv(name);
        if (!value || !*value) continue;
        int r = set(c, &table[i], value, name, err);
        if (r < 0) return r;
    }
    return 0;
}

struct parse {
    struct settings *settings;
    struct error *err;
    int models; /* given without a flag */
};

static error_t parse_option(int key, char *arg, struct argp_state *state) {
    struct parse *p = state->input;
    char who[64];
    if (key == KEY_HELP) {
        p->settings->help = true;
        argp_state_help(state, stdout,
                        ARGP_HELP_USAGE | ARGP_HELP_PRE_DOC | ARGP_HELP_LONG | ARGP_HELP_POST_DOC);
        return ECANCELED;
    }
    if (key == ARGP_KEY_ARG) {
        if (p->models++) {
            error_set(p->err, -EINVAL, "one MODEL only, not also '%.64s'", arg);
            return EINVAL;
        }
        return -set_text(p->settings, &table[0], arg, "MODEL", p->err);
    }
    if (key < KEY_BASE || key >= KEY_BASE + N_SETTINGS) return ARGP_ERR_UNKNOWN;
    snprintf(who, sizeof who, "--%s", table[key - KEY_BASE].name);
    return -set(p->settings, &table[key - KEY_BASE], arg, who, p->err);
}

int settings_parse(struct settings *ret, int argc, char **argv, struct error *err) {
    struct argp_option options[N_SETTINGS + 2] = {0};
    for (int i = 0; i < N_SETTINGS; i++)
        options[i] = (struct argp_option){
            .name = table[i].name, .key = KEY_BASE + i, .arg = table[i].arg, .doc = table[i].doc};
    options[N_SETTINGS] = (struct argp_option){.name = "help", .key = KEY_HELP, .doc = "this text"};
    struct argp argp = {.options = options,
                        .parser = parse_option,
                        .args_doc = "[MODEL]",
                        .doc = "Serve a model over HTTP with OpenAI's API."
                               "\vEvery flag has a variable: --max-body is GPTQT_MAX_BODY.\n\n"
                               "Exit status: 0 after a signal, 1 for failures and after a second "
                               "signal, 2 for wrong usage, 3 when the engine failed while serving "
                               "(a GPU was lost): start it again."};
    struct settings parsed;
    set_defaults(&parsed);
    int r = read_environment(&parsed, err);
    if (r < 0) return r;

    struct parse parse = {&parsed, err, 0};
    struct error none = {""};
    if (err) *err = none;
    int code = argp_parse(&argp, argc, argv, ARGP_NO_EXIT | ARGP_NO_HELP, NULL, &parse);
    if (code && code != ECANCELED) {
        /* argp has named an option it does not know on standard error itself. */
        if (err && !err->text[0]) error_set(err, -EINVAL, "wrong usage; see --help");
        return -EINVAL;
    }
    *ret = parsed;
    return 0;
}

static bool is_secret(const struct setting *s) { return !strcmp(s->name, "api-key"); }

void settings_print(const struct settings *settings, FILE *out) {
    struct settings c = *settings;
    for (int i = 0; i < N_SETTINGS; i++) {
        const struct setting *s = &table[i];
        if (!is_text(s))
            fprintf(out, " %s=%lld", s->name, (long long)*number_at(&c, s));
        else if (*text_at(&c, s))
            fprintf(out, " %s=%s", s->name, is_secret(s) ? "(hidden)" : *text_at(&c, s));
    }
}
