#include "server/offline_args.h"

#include "engine/offline.h"
#include "kernels/error.h"
#include "server/cli.h"

enum { OPT_KV = 512, OPT_LEVEL, OPT_ACT_BITS, OPT_DEVICES };

static const struct argp_option options[] = {
    {"backend", 'b', "NAME", 0, "auto, cpu, cuda or cuda-emu", 0},
    {"tensor-parallel", OPT_DEVICES, "N", 0,
     "GPUs that share the model, each with a part of every matrix (default: 1)", 0},
    {"cpu-level", OPT_LEVEL, "LEVEL", 0, "ref, avx2, avx512, amx, neon or auto", 0},
    {"act-bits", OPT_ACT_BITS, "N", 0,
     "Inputs of binary-coded layers: 16 as they are, 8 or 4 rounded (default: the checkpoint's)",
     0},
    {"threads", 't', "N", 0, "Threads (default: all processors)", 0},
    {"kv", OPT_KV, "TYPE", 0,
     "f16, f32 or int8: type of stored keys and values (default: f32 where results are compared "
     "with "
     "references, f16 where speed is)",
     0},
    {0},
};

static error_t parse(int key, char *value, struct argp_state *state) {
    struct offline_options *o = state->input;
    struct error err;
    int r = 0;
    switch (key) {
    case 'b':
        o->backend.name = value;
        break;
    case OPT_LEVEL:
        o->backend.level = value;
        break;
    case OPT_DEVICES:
        r = cli_int(&o->backend.n_devices, "--tensor-parallel", value, 1, 8, &err);
        break;
    case OPT_ACT_BITS:
        r = cli_act_bits(&o->model.act_bits, value, &err);
        break;
    case 't':
        r = cli_int(&o->backend.n_threads, "--threads", value, 1, 1024, &err);
        break;
    case OPT_KV:
        r = cli_kv(&o->model.kv_type, value, &err);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    if (r < 0) argp_error(state, "%s", err.text);
    return 0;
}

const struct argp offline_argp = {options, parse, NULL, NULL, NULL, NULL, NULL};
