#include "server/cli.h"

#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/error.h"

int cli_int64(int64_t *ret, const char *flag, const char *text, int64_t lo, int64_t hi,
              struct error *err) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < lo || value > hi)
        return error_set(err, -EINVAL, "%s '%.40s': a whole number from %lld to %lld is needed",
                         flag, text, (long long)lo, (long long)hi);
    *ret = value;
    return 0;
}

int cli_int(int *ret, const char *flag, const char *text, int lo, int hi, struct error *err) {
    int64_t value;
    int r = cli_int64(&value, flag, text, lo, hi, err);
    if (r == 0) *ret = (int)value;
    return r;
}

int cli_seed(uint64_t *ret, const char *flag, const char *text, struct error *err) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        return error_set(err, -EINVAL, "%s '%.40s': a whole number from 0 to 2^64-1 is needed",
                         flag, text);
    *ret = value;
    return 0;
}

int cli_float(float *ret, const char *flag, const char *text, float lo, float hi,
              struct error *err) {
    char *end;
    errno = 0;
    float value = strtof(text, &end);
    if (errno || end == text || *end || !isfinite(value) || value < lo || value > hi)
        return error_set(err, -EINVAL, "%s '%.40s': a number from %g to %g is needed", flag, text,
                         (double)lo, (double)hi);
    *ret = value;
    return 0;
}

int cli_choice(const char *flag, const char *text, const char *(*name_of)(int), int *ret,
               struct error *err) {
    for (int i = 0; name_of(i); i++) {
        if (strcmp(name_of(i), text) != 0 || !*text) continue;
        *ret = i;
        return 0;
    }
    return error_set(err, -EINVAL, "%s '%.40s': no such choice, see --help", flag, text);
}

int cli_act_bits(int *ret, const char *text, struct error *err) {
    int bits = 0, r = cli_int(&bits, "--act-bits", text, 4, 16, err);
    if (r < 0) return r;
    if (bits != 16 && bits != 8 && bits != 4)
        return error_set(err, -1, "--act-bits '%s': 16, 8 or 4 is needed", text);
    *ret = bits;
    return 0;
}

int cli_kv(enum dtype *ret, const char *text, struct error *err) {
    if (!strcmp(text, "f32"))
        *ret = DTYPE_F32;
    else if (!strcmp(text, "f16"))
        *ret = DTYPE_F16;
    else if (!strcmp(text, "int8"))
        *ret = DTYPE_I8;
    else
        return error_set(err, -EINVAL, "--kv '%.40s': f16, f32 or int8 is needed", text);
    return 0;
}

int cli_parsed(int r, struct argp_state *state, const struct error *err) {
    if (r > 0) return ARGP_ERR_UNKNOWN;
    if (r < 0) argp_error(state, "%s", err->text);
    return 0;
}

int cli_model(const char **model, const char *value, struct argp_state *state) {
    if (state->arg_num > 0) argp_error(state, "one MODEL is enough");
    *model = value;
    return 0;
}

int cli_end(int status, const char *command, const struct error *err) {
    fprintf(stderr, "%s: %s\n", command, err->text);
    return status;
}

double cli_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
