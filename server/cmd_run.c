#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/sampler.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/generate.h"
#include "server/model_source.h"
#include "server/sampling_args.h"

static const char name[] = "gptqt run";

struct args {
    const char *model, *prompt;
    struct sampling_args sampling;
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &args->sampling;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0)
            args->model = value;
        else if (state->arg_num == 1)
            args->prompt = value;
        else
            argp_error(state, "one MODEL and one PROMPT are enough (quote the prompt)");
        return 0;
    case ARGP_KEY_END:
        if (!args->prompt) argp_error(state, "MODEL and PROMPT are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&sampling_argp, 0, NULL, 0}, {0}};
static const struct argp argp = {NULL,
                                 parse,
                                 "MODEL PROMPT",
                                 "Continues PROMPT; the continuation, and nothing else, goes to "
                                 "standard output.",
                                 children,
                                 NULL,
                                 NULL};

static bool print(void *arg, const char *text, size_t n) {
    (void)arg;
    return fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0;
}

static int run(const struct args *args, struct error *err) {
    struct source *src;
    int r = model_source_open(&src, args->model, err);
    if (r < 0) return r;
    struct generator g;
    r = generate_open(&g, src, &args->sampling.engine, err);
    struct engine_request *request = NULL;
    if (r == 0) r = sampling_request(&request, &args->sampling, g.engine, err);
    if (r == 0) {
        request->text = strdup(args->prompt);
        request->text_len = strlen(args->prompt);
        struct generate_result result;
        if (!request->text) {
            engine_request_free(request);
            r = error_set(err, -ENOMEM, "out of memory");
        } else {
            r = generate_run(&g, request, print, NULL, &result, err);
            if (r == 0 && ferror(stdout)) r = error_set(err, -EIO, "standard output is closed");
        }
    }
    generate_close(&g);
    return r;
}

int cmd_run(int argc, char **argv) {
    struct args args = {0};
    sampling_args_init(&args.sampling);
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    int r = run(&args, &err);
    if (r < 0) return cli_end(CLI_FAILED, name, &err);
    if (isatty(STDOUT_FILENO) == 1) putchar('\n'); /* so that the shell's prompt stands alone */
    return 0;
}
