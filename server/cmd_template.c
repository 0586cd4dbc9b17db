#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/chat.h"
#include "engine/map.h"
#include "engine/source.h"
#include "engine/source_text.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/lines.h"
#include "server/model_source.h"

static const char name[] = "gptqt template";

enum { OPT_FILE = 256, MAX_MESSAGES = 4096 };

struct args {
    const char *model, *file;
};

static const struct argp_option options[] = {
    {"chat-template", OPT_FILE, "FILE", 0, "Take the template from this file", 0},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    switch (key) {
    case OPT_FILE:
        args->file = value;
        return 0;
    case ARGP_KEY_ARG:
        return cli_model(&args->model, value, state);
    case ARGP_KEY_END:
        if (!args->model == !args->file)
            argp_error(state, "either MODEL or --chat-template FILE is needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    options,
    parse,
    "[MODEL]",
    "Reads one JSON object per line, {messages, tools, add_generation_prompt, kwargs, bos_token, "
    "eos_token}, and prints the prompt as a JSON string, or {\"error\": ...}.",
    NULL,
    NULL,
    NULL};

struct job {
    struct chat_template *template;
    char *bos, *eos; /* the model's; a line may name others */
};

static int read_messages(const json_t *list, struct chat_message **ret, size_t *ret_n,
                         struct error *err) {
    size_t n = json_array_size(list), i;
    if (!json_is_array(list) || n == 0 || n > MAX_MESSAGES)
        return error_set(err, -EINVAL, "messages: a list of 1 to %d is needed", MAX_MESSAGES);
    struct chat_message *messages = calloc(n, sizeof *messages);
    if (!messages) return error_set(err, -ENOMEM, "out of memory");
    json_t *item;
    json_array_foreach((json_t *)list, i, item) {
        const json_t *role = json_object_get(item, "role");
        const json_t *content = json_object_get(item, "content");
        if (!json_is_string(role) || !json_is_string(content)) {
            free(messages);
            return error_set(err, -EINVAL, "messages[%zu]: strings role and content are needed", i);
        }
        messages[i] =
            (struct chat_message){json_string_value(role), json_string_length(role),
                                  json_string_value(content), json_string_length(content)};
    }
    *ret = messages;
    *ret_n = n;
    return 0;
}

/* What only a template engine could honour is refused, never ignored. */
static int refuse_extras(const json_t *line, struct error *err) {
    const json_t *tools = json_object_get(line, "tools");
    if (tools && !json_is_null(tools) && json_array_size(tools))
        return error_set(err, -ENOTSUP, "tools: not supported by the built-in prompt forms");
    if (json_object_size(json_object_get(line, "kwargs")))
        return error_set(err, -ENOTSUP, "kwargs: not supported by the built-in prompt forms");
    return 0;
}

static int render(const struct job *job, const json_t *line, struct buf *out, struct error *err) {
    if (!json_is_object(line)) return error_set(err, -EINVAL, "a JSON object is needed");
    int r = refuse_extras(line, err);
    if (r < 0) return r;
    const char *bos = json_string_value(json_object_get(line, "bos_token"));
    const char *eos = json_string_value(json_object_get(line, "eos_token"));
    struct chat_message *messages = NULL;
    struct chat_prompt prompt = {
        .add_generation_prompt = json_is_true(json_object_get(line, "add_generation_prompt")),
        .bos = bos ? bos : job->bos,
        .eos = eos ? eos : job->eos,
    };
    r = read_messages(json_object_get(line, "messages"), &messages, &prompt.n_messages, err);
    if (r < 0) return r;
    prompt.messages = messages;
    r = chat_render(job->template, &prompt, out, err);
    free(messages);
    return r;
}

static int one_line(void *arg, json_t *line, struct error *err) {
    struct buf out = {0};
    struct error why;
    json_t *answer = render(arg, line, &out, &why) < 0
                         ? json_pack("{s:s}", "error", why.text)
                         : json_stringn(out.data ? out.data : "", out.len);
    buf_free(&out);
    if (!answer) return error_set(err, -EINVAL, "the prompt is no UTF-8");
    int r = json_dumpf(answer, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(answer);
    putchar('\n');
    return r < 0 ? error_set(err, -EIO, "standard output is closed") : 0;
}

static int open_file(struct job *job, const char *path, struct error *err) {
    struct map map;
    int r = map_open(&map, path, err);
    if (r < 0) return r;
    r = chat_template_new(&job->template, (const char *)map.bytes, map.size, err);
    map_close(&map);
    return r;
}

static int open_model(struct job *job, const char *model, struct error *err) {
    struct source *src;
    struct tokenizer *tokenizer = NULL;
    char *text = NULL;
    int r = model_source_open(&src, model, err);
    if (r < 0) return r;
    r = source_text_template(&text, src, err);
    if (r == 0) r = chat_template_new(&job->template, text, strlen(text), err);
    if (r == 0) r = source_text_tokenizer(&tokenizer, src, err);
    if (r == 0) r = source_text_special(&job->bos, src, tokenizer, "bos_token", err);
    if (r == 0) r = source_text_special(&job->eos, src, tokenizer, "eos_token", err);
    free(text);
    tokenizer_free(tokenizer);
    source_close(src);
    return r;
}

int cmd_template(int argc, char **argv) {
    struct args args = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    struct job job = {0};
    int r = args.file ? open_file(&job, args.file, &err) : open_model(&job, args.model, &err);
    if (r == 0) r = lines_each(stdin, one_line, &job, &err);
    chat_template_free(job.template);
    free(job.bos);
    free(job.eos);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
