#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/buf.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/generate.h"
#include "server/model_source.h"
#include "server/sampling_args.h"

static const char name[] = "gptqt chat";

enum { OPT_SYSTEM = 256, MAX_MESSAGES = 1024 };

struct args {
    const char *model, *system;
    struct sampling_args sampling;
};

static const struct argp_option options[] = {
    {"system", OPT_SYSTEM, "TEXT", 0, "System message to begin with", 0},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &args->sampling;
        return 0;
    case OPT_SYSTEM:
        args->system = value;
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

static const struct argp_child children[] = {{&sampling_argp, 0, NULL, 0}, {0}};
static const struct argp argp = {options,
                                 parse,
                                 "MODEL",
                                 "Talks with a model. An empty line or the end of input ends the "
                                 "chat; /reset begins a new one.",
                                 children,
                                 NULL,
                                 NULL};

/* What was said so far, oldest first. */
struct talk {
    struct engine_message messages[MAX_MESSAGES];
    int n;
};

static int say(struct talk *talk, const char *role, const char *content, struct error *err) {
    if (talk->n == MAX_MESSAGES)
        return error_set(err, -E2BIG, "more than %d messages; /reset begins anew", MAX_MESSAGES);
    struct engine_message *m = &talk->messages[talk->n];
    m->role = strdup(role);
    m->content = strdup(content);
    if (!m->role || !m->content) {
        free(m->role);
        free(m->content);
        return error_set(err, -ENOMEM, "out of memory");
    }
    talk->n++;
    return 0;
}

static void forget(struct talk *talk, int from) {
    while (talk->n > from) {
        talk->n--;
        free(talk->messages[talk->n].role);
        free(talk->messages[talk->n].content);
    }
}

/* The request owns copies of its own. */
static int copy_talk(struct engine_request *request, const struct talk *talk, struct error *err) {
    request->messages = calloc((size_t)talk->n, sizeof *request->messages);
    if (!request->messages) return error_set(err, -ENOMEM, "out of memory");
    for (int i = 0; i < talk->n; i++) {
        struct engine_message *m = &request->messages[request->n_messages++];
        m->role = strdup(talk->messages[i].role);
        m->content = strdup(talk->messages[i].content);
        if (!m->role || !m->content) return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

static bool collect(void *arg, const char *text, size_t n) {
    fwrite(text, 1, n, stdout);
    return fflush(stdout) == 0 && buf_append(arg, text, n) == 0;
}

static int answer(struct generator *g, const struct sampling_args *sampling, struct talk *talk,
                  struct error *err) {
    struct engine_request *request;
    int r = sampling_request(&request, sampling, g->engine, err);
    if (r < 0) return r;
    r = copy_talk(request, talk, err);
    if (r < 0) {
        engine_request_free(request);
        return r;
    }
    struct buf text = {0};
    struct generate_result result;
    r = generate_run(g, request, collect, &text, &result, err);
    putchar('\n');
    if (r == 0) r = say(talk, "assistant", text.data ? text.data : "", err);
    buf_free(&text);
    return r;
}

/* One line of the user; 0 goes on, 1 ends. A failed turn is told and taken back. */
static int turn(struct generator *g, const struct args *args, struct talk *talk, char *line) {
    struct error err;
    line[strcspn(line, "\n")] = 0;
    if (!*line) return 1;
    if (!strcmp(line, "/reset")) {
        forget(talk, args->system ? 1 : 0);
        return 0;
    }
    int before = talk->n;
    int r = say(talk, "user", line, &err);
    if (r == 0) r = answer(g, &args->sampling, talk, &err);
    if (r < 0) {
        forget(talk, before);
        cli_end(CLI_FAILED, name, &err);
    }
    return 0;
}

static int run(const struct args *args, struct error *err) {
    struct source *src;
    int r = model_source_open(&src, args->model, err);
    if (r < 0) return r;
    struct generator g;
    r = generate_open(&g, src, &args->sampling.engine, err);
    struct talk *talk = calloc(1, sizeof *talk);
    if (r == 0 && !talk) r = error_set(err, -ENOMEM, "out of memory");
    if (r == 0 && !engine_get_info(g.engine)->has_chat_template)
        r = error_set(err, -ENOTSUP, "%s has no chat template that is supported", args->model);
    if (r == 0 && args->system) r = say(talk, "system", args->system, err);
    bool prompt = isatty(STDIN_FILENO) == 1;
    char *line = NULL;
    size_t room = 0;
    while (r == 0 && !ferror(stdout)) {
        if (prompt) fputs("> ", stdout), fflush(stdout);
        if (getline(&line, &room, stdin) < 0 || turn(&g, args, talk, line)) break;
    }
    if (r == 0 && ferror(stdout)) r = error_set(err, -EIO, "standard output is closed");
    free(line);
    if (talk) forget(talk, 0);
    free(talk);
    generate_close(&g);
    return r;
}

int cmd_chat(int argc, char **argv) {
    struct args args = {0};
    sampling_args_init(&args.sampling);
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    int r = run(&args, &err);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
