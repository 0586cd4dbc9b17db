#include "server/sampling_args.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <time.h>

#include "kernels/error.h"
#include "server/cli.h"

enum {
    OPT_TEMPERATURE = 512,
    OPT_TOP_P,
    OPT_TOP_K,
    OPT_MIN_P,
    OPT_REPETITION,
    OPT_SEED,
    OPT_LEVEL,
    OPT_DEVICES,
    OPT_ACT_BITS,
    OPT_KV,
    OPT_CONTEXT
};

enum {
    GIVEN_TEMPERATURE = 1,
    GIVEN_TOP_P = 2,
    GIVEN_TOP_K = 4,
    GIVEN_MIN_P = 8,
    GIVEN_REPETITION = 16
};

static const struct argp_option options[] = {
    {"max-tokens", 'n', "N", 0, "Tokens to generate at most (default: until the model ends)", 0},
    {"temperature", OPT_TEMPERATURE, "T", 0, "0 takes the best token each time", 0},
    {"top-p", OPT_TOP_P, "P", 0, "Sample from the best tokens that make up this share", 0},
    {"top-k", OPT_TOP_K, "K", 0, "Sample from the K best tokens (0: all)", 0},
    {"min-p", OPT_MIN_P, "P", 0, "Leave out tokens below this share of the best one's", 0},
    {"repetition-penalty", OPT_REPETITION, "R", 0, "Above 1 makes known tokens less likely", 0},
    {"seed", OPT_SEED, "S", 0, "Same seed, same text (default: from the clock)", 0},
    {"backend", 'b', "NAME", 0, "auto, cpu, cuda or cuda-emu", 0},
    {"tensor-parallel", OPT_DEVICES, "N", 0,
     "GPUs that share the model, each with a part of every matrix (default: 1)", 0},
    {"cpu-level", OPT_LEVEL, "LEVEL", 0, "ref, avx2, avx512, amx, neon or auto", 0},
    {"act-bits", OPT_ACT_BITS, "N", 0,
     "Inputs of binary-coded layers: 16 as they are, 8 or 4 rounded (default: the checkpoint's)",
     0},
    {"threads", 't', "N", 0, "Threads (default: all processors)", 0},
    {"kv", OPT_KV, "TYPE", 0, "f16 (default), f32 or int8: type of stored keys and values", 0},
    {"max-context", OPT_CONTEXT, "N", 0, "Positions (default: the model's)", 0},
    {0},
};

static int set(struct sampling_args *args, int key, const char *value, struct error *err) {
    struct sampler_params *p = &args->params;
    enum dtype kv;
    int r;
    switch (key) {
    case 'n':
        return cli_int(&args->max_tokens, "-n", value, 1, INT_MAX, err);
    case 'b':
        args->engine.backend = value;
        return 0;
    case 't':
        return cli_int(&args->engine.n_threads, "--threads", value, 1, 1024, err);
    case OPT_TEMPERATURE:
        args->given |= GIVEN_TEMPERATURE;
        return cli_float(&p->temperature, "--temperature", value, 0, 100, err);
    case OPT_TOP_P:
        args->given |= GIVEN_TOP_P;
        return cli_float(&p->top_p, "--top-p", value, 1e-6F, 1, err);
    case OPT_TOP_K:
        args->given |= GIVEN_TOP_K;
        return cli_int(&p->top_k, "--top-k", value, 0, INT_MAX, err);
    case OPT_MIN_P:
        args->given |= GIVEN_MIN_P;
        return cli_float(&p->min_p, "--min-p", value, 0, 0.999F, err);
    case OPT_REPETITION:
        args->given |= GIVEN_REPETITION;
        return cli_float(&p->repetition_penalty, "--repetition-penalty", value, 0.01F, 100, err);
    case OPT_SEED:
        args->seed_given = true;
        return cli_seed(&args->seed, "--seed", value, err);
    case OPT_DEVICES:
        return cli_int(&args->engine.n_devices, "--tensor-parallel", value, 1, 8, err);
    case OPT_ACT_BITS:
        return cli_act_bits(&args->engine.act_bits, value, err);
    case OPT_LEVEL:
        args->engine.level = value;
        return 0;
    case OPT_CONTEXT:
        return cli_int(&args->engine.max_context, "--max-context", value, 2, 1 << 24, err);
    case OPT_KV:
        r = cli_kv(&kv, value, err);
        if (r == 0)
            args->engine.kv = kv == DTYPE_F32  ? ENGINE_KV_F32
                              : kv == DTYPE_I8 ? ENGINE_KV_INT8
                                               : ENGINE_KV_F16;
        return r;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *value, struct argp_state *state) {
    struct error err;
    int r = set(state->input, key, value, &err);
    if (r < 0) argp_error(state, "%s", err.text);
    return r;
}

const struct argp sampling_argp = {options, parse, NULL, NULL, NULL, NULL, NULL};

void sampling_args_init(struct sampling_args *args) {
    *args =
        (struct sampling_args){.engine = {.max_running = 1, .max_waiting = 1, .step_tokens = 512}};
    sampler_defaults(&args->params);
}

int sampling_request(struct engine_request **ret, const struct sampling_args *args,
                     const struct engine *engine, struct error *err) {
    struct engine_request *request = engine_request_new();
    if (!request) return error_set(err, -ENOMEM, "out of memory");
    struct sampler_params *p = &request->sampling;
    *p = engine_get_info(engine)->sampling;
    if (args->given & GIVEN_TEMPERATURE) p->temperature = args->params.temperature;
    if (args->given & GIVEN_TOP_P) p->top_p = args->params.top_p;
    if (args->given & GIVEN_TOP_K) p->top_k = args->params.top_k;
    if (args->given & GIVEN_MIN_P) p->min_p = args->params.min_p;
    if (args->given & GIVEN_REPETITION) p->repetition_penalty = args->params.repetition_penalty;
    request->max_tokens = args->max_tokens;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    request->seed =
        args->seed_given ? args->seed : (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec;
    *ret = request;
    return 0;
}
