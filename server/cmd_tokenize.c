#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/detok.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/lines.h"
#include "server/model_source.h"

static const char name[] = "gptqt tokenize";

struct args {
    const char *model;
    unsigned flags;
    bool decode;
};

enum { OPT_ADD_SPECIAL = 256, OPT_NO_PARSE_SPECIAL, OPT_DECODE };

static const struct argp_option options[] = {
    {"add-special", OPT_ADD_SPECIAL, NULL, 0, "Add the tokens that the model wants around a text",
     0},
    {"no-parse-special", OPT_NO_PARSE_SPECIAL, NULL, 0,
     "Special tokens written in the text are plain text", 0},
    {"decode", OPT_DECODE, NULL, 0, "Read arrays of ids, write strings", 0},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    switch (key) {
    case OPT_ADD_SPECIAL:
        args->flags |= TOKENIZER_ADD_SPECIAL;
        return 0;
    case OPT_NO_PARSE_SPECIAL:
        args->flags &= ~(unsigned)TOKENIZER_PARSE_SPECIAL;
        return 0;
    case OPT_DECODE:
        args->decode = true;
        return 0;
    case ARGP_KEY_ARG:
        return cli_model(&args->model, value, state);
    case ARGP_KEY_END:
        if (!args->model) argp_error(state, "MODEL is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    options,
    parse,
    "MODEL",
    "Reads one JSON string per line and prints its token ids as a JSON array; with --decode the "
    "other way. MODEL may also be a tokenizer.json.",
    NULL,
    NULL,
    NULL};

static int print(json_t *value) {
    if (!value || json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY) < 0) return -ENOMEM;
    json_decref(value);
    putchar('\n');
    return 0;
}

static int encode(const struct tokenizer *t, const struct args *args, const json_t *line,
                  struct error *err) {
    if (!json_is_string(line)) return error_set(err, -EINVAL, "a JSON string is needed");
    int32_t *ids;
    size_t n;
    int r = tokenizer_encode(t, json_string_value(line), json_string_length(line), args->flags,
                             &ids, &n, err);
    if (r < 0) return r;
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(array, json_integer(ids[i]));
    free(ids);
    return print(array);
}

static int decode(const struct tokenizer *t, const json_t *line, struct error *err) {
    if (!json_is_array(line)) return error_set(err, -EINVAL, "an array of token ids is needed");
    struct buf bytes = {0}, text = {0};
    int r = 0;
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)line, i, item) {
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= tokenizer_vocab_size(t)) {
            r = error_set(err, -EINVAL, "element %zu: a token id below %d is needed", i,
                          tokenizer_vocab_size(t));
            break;
        }
        int32_t token = (int32_t)id;
        r = tokenizer_decode(t, &token, 1, false, &bytes);
        if (r < 0) break;
    }
    struct detok detok = {0};
    if (r == 0) r = detok_push_bytes(&detok, bytes.data, bytes.len, &text);
    if (r == 0) r = detok_flush(&detok, &text);
    if (r == 0) r = print(json_stringn(text.data ? text.data : "", text.len));
    buf_free(&bytes);
    buf_free(&text);
    return r;
}

struct job {
    const struct args *args;
    const struct tokenizer *tokenizer;
};

static int one_line(void *arg, json_t *value, struct error *err) {
    const struct job *job = arg;
    return job->args->decode ? decode(job->tokenizer, value, err)
                             : encode(job->tokenizer, job->args, value, err);
}

int cmd_tokenize(int argc, char **argv) {
    struct args args = {.flags = TOKENIZER_PARSE_SPECIAL};
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    struct source *src = NULL;
    struct tokenizer *tokenizer = NULL;
    size_t n = strlen(args.model);
    int r;
    if (n > 5 && !strcmp(args.model + n - 5, ".json")) {
        r = source_text_tokenizer_file(&tokenizer, args.model, &err);
    } else {
        r = model_source_open(&src, args.model, &err);
        if (r == 0) r = source_text_tokenizer(&tokenizer, src, &err);
    }
    struct job job = {&args, tokenizer};
    if (r == 0) r = lines_each(stdin, one_line, &job, &err);
    tokenizer_free(tokenizer);
    source_close(src);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
