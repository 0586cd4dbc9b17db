#include <argp.h>
#include <signal.h>
#include <string.h>

#include "engine/gguf_export.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/model_source.h"

static const char name[] = "gptqt export";

struct args {
    const char *model, *out;
    enum dtype type;
};

enum { OPT_TYPE = 256 };

static const struct argp_option options[] = {
    {"type", OPT_TYPE, "TYPE", 0, "Of the matrices: f16 (default), bf16 or f32", 0},
    {0},
};

static int take_type(enum dtype *ret, const char *text, struct error *err) {
    static const struct {
        const char *name;
        enum dtype type;
    } types[] = {{"f16", DTYPE_F16}, {"bf16", DTYPE_BF16}, {"f32", DTYPE_F32}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(text, types[i].name) != 0) continue;
        *ret = types[i].type;
        return 0;
    }
    return error_set(err, -1, "--type '%.40s': f16, bf16 or f32 is needed", text);
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    struct error err;
    switch (key) {
    case OPT_TYPE:
        if (take_type(&args->type, value, &err) < 0) argp_error(state, "%s", err.text);
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 1) argp_error(state, "MODEL and OUT are enough");
        *(state->arg_num ? &args->out : &args->model) = value;
        return 0;
    case ARGP_KEY_END:
        if (!args->out) argp_error(state, "MODEL and OUT are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    options,
    parse,
    "MODEL OUT",
    "Writes a Llama model as a GGUF file for llama.cpp.\vBinary-coded matrices are written as the "
    "dense ones that they stand for: to compare, not to save space.",
    NULL,
    NULL,
    NULL};

int cmd_export(int argc, char **argv) {
    struct args args = {.type = DTYPE_F16};
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    struct source *src;
    /* A limit on the size of files is an error like a full disk, told with the file's name. */
    signal(SIGXFSZ, SIG_IGN);
    int r = model_source_open(&src, args.model, &err);
    if (r < 0) return cli_end(CLI_FAILED, name, &err);
    r = gguf_export(args.out, src, args.type, &err);
    source_close(src);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
