#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/offline.h"
#include "engine/safetensors.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "server/cli.h"
#include "server/commands.h"
#include "server/model_source.h"
#include "server/offline_args.h"

static const char name[] = "gptqt logits";

enum { MAX_IDS = 1 << 20, ROWS = 32 };

struct args {
    const char *model, *out;
    int32_t *ids;
    int n_ids;
    struct offline_options open;
};

enum { OPT_IDS = 256, OPT_OUT };

static const struct argp_option options[] = {
    {"ids", OPT_IDS, "1,2,3", 0, "Token ids of the prompt, at least one", 0},
    {"out", OPT_OUT, "FILE", 0, "Where to write: tensor `logits`, fp32, [ids, vocabulary]", 0},
    {0},
};

static int read_ids(struct args *args, const char *text, struct error *err) {
    size_t room = 1;
    for (const char *p = text; *p; p++) room += *p == ',';
    if (room > MAX_IDS) return error_set(err, -EINVAL, "--ids: more than %d", MAX_IDS);
    free(args->ids);
    args->n_ids = 0;
    args->ids = malloc(room * sizeof *args->ids);
    if (!args->ids) return error_set(err, -ENOMEM, "--ids: out of memory");
    for (const char *p = text;; p++) {
        char *end;
        errno = 0;
        long id = strtol(p, &end, 10);
        if (end == p || errno || id < 0 || id > INT32_MAX || (*end && *end != ','))
            return error_set(err, -EINVAL, "--ids: '%.40s' is no list of token ids", text);
        args->ids[args->n_ids++] = (int32_t)id;
        if (!*end) return 0;
        p = end;
    }
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct args *args = state->input;
    struct error err;
    int r = 0;
    switch (key) {
    case OPT_IDS:
        r = read_ids(args, value, &err);
        break;
    case OPT_OUT:
        args->out = value;
        break;
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &args->open;
        return 0;
    case ARGP_KEY_ARG:
        return cli_model(&args->model, value, state);
    case ARGP_KEY_END:
        if (!args->model) argp_error(state, "MODEL is missing");
        if (!args->n_ids) argp_error(state, "--ids is missing");
        if (!args->out) argp_error(state, "--out is missing");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    if (r < 0) argp_error(state, "%s", err.text);
    return 0;
}

static const struct argp_child children[] = {{&offline_argp, 0, NULL, 0}, {0}};
static const struct argp argp = {
    options,  parse, "MODEL", "Runs a prompt and writes the logits of each of its tokens.",
    children, NULL,  NULL};

static int check_ids(const struct args *args, const struct model_config *c, struct error *err) {
    for (int i = 0; i < args->n_ids; i++)
        if (args->ids[i] >= c->vocab)
            return error_set(err, -EINVAL, "--ids: %d is outside the vocabulary of %d",
                             args->ids[i], c->vocab);
    if (args->n_ids > c->max_positions)
        return error_set(err, -E2BIG, "--ids: %d ids, the model has %d positions", args->n_ids,
                         c->max_positions);
    return 0;
}

/* The whole prompt as one batch: rows and positions 0, 1, 2, ... */
static int forward(struct offline *o, const struct args *args, float *logits, struct error *err) {
    int n = args->n_ids;
    int32_t *numbers = malloc((size_t)n * 2 * sizeof *numbers);
    if (!numbers) return error_set(err, -ENOMEM, "out of memory");
    int32_t *zeros = numbers + n;
    for (int i = 0; i < n; i++) {
        numbers[i] = i;
        zeros[i] = 0;
    }
    struct batch batch = {.n_tokens = n,
                          .n_seqs = 1,
                          .tokens = args->ids,
                          .positions = numbers,
                          .seqs = zeros,
                          .blocks = numbers,
                          .max_blocks = (n + BACKEND_KV_BLOCK - 1) / BACKEND_KV_BLOCK};
    model_forward(o->model, &batch);
    int r = model_logits(o->model, logits, numbers, n, err);
    free(numbers);
    return r;
}

static int run(struct args *args, struct error *err) {
    struct source *src;
    int r = model_source_open(&src, args->model, err);
    if (r < 0) return r;
    const struct model_config *c = source_config(src);
    r = check_ids(args, c, err);
    if (r < 0) {
        source_close(src);
        return r;
    }
    args->open.context = args->n_ids;
    args->open.model.max_batch_tokens = args->n_ids;
    args->open.model.max_logit_rows = args->n_ids < ROWS ? args->n_ids : ROWS;
    struct offline o;
    r = offline_open(&o, src, &args->open, err);
    if (r < 0) return r;
    size_t vocab = (size_t)model_get_config(o.model)->vocab;
    float *logits = malloc((size_t)args->n_ids * vocab * sizeof *logits);
    r = logits ? forward(&o, args, logits, err) : error_set(err, -ENOMEM, "out of memory");
    if (r == 0) {
        uint64_t n_bytes = (uint64_t)args->n_ids * vocab * sizeof *logits;
        struct safetensors_tensor tensor = {.name = "logits",
                                            .type = SAFETENSORS_F32,
                                            .n_dims = 2,
                                            .shape = {(uint64_t)args->n_ids, vocab},
                                            .data = logits,
                                            .n_bytes = n_bytes};
        r = safetensors_write(args->out, &tensor, 1, err);
    }
    free(logits);
    offline_close(&o);
    return r;
}

int cmd_logits(int argc, char **argv) {
    struct args args = {.open.model.kv_type = DTYPE_F32};
    argp_parse(&argp, argc, argv, 0, NULL, &args);
    struct error err = {{0}};
    int r = run(&args, &err);
    free(args.ids);
    return r < 0 ? cli_end(CLI_FAILED, name, &err) : 0;
}
