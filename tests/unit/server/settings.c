#include "server/settings.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

static int parse(struct settings *s, struct error *err, const char *a, const char *b) {
    char *argv[4] = {(char *)"serve", (char *)a, (char *)b, NULL};
    return settings_parse(s, 1 + (a != NULL) + (b != NULL), argv, err);
}

Test(settings, defaults_are_complete) {
    struct settings s;
    struct error err;
    cr_assert(parse(&s, &err, NULL, NULL) == 0);
    cr_expect(!strcmp(s.model, "builtin") && !strcmp(s.host, "127.0.0.1") && s.port == 8080);
    cr_expect(s.max_running == 32 && s.max_waiting == 256 && s.step_tokens == 512);
    cr_expect(s.max_body == 2 << 20 && !s.cors && !s.served_model_name && !s.help);
}

Test(settings, flag_beats_variable_beats_default) {
    struct settings s;
    struct error err;
    setenv("GPTQT_MAX_RUNNING", "5", 1);
    setenv("GPTQT_HOST", "::1", 1);
    cr_assert(parse(&s, &err, "--max-running=7", NULL) == 0);
    cr_expect(s.max_running == 7 && !strcmp(s.host, "::1"));
    cr_assert(parse(&s, &err, "other/model", NULL) == 0);
    cr_expect(s.max_running == 5 && !strcmp(s.model, "other/model"));
    cr_assert(parse(&s, &err, "--model", "m") == 0);
    cr_expect(!strcmp(s.model, "m"));
}

Test(settings, bytes_have_units) {
    struct settings s;
    struct error err;
    cr_assert(parse(&s, &err, "--max-body", "64k") == 0 && s.max_body == 64 << 10);
    cr_assert(parse(&s, &err, "--memory-limit", "3M") == 0 && s.memory_limit == 3 << 20);
    cr_assert(parse(&s, &err, "--memory-limit", "2G") == 0 && s.memory_limit == INT64_C(2) << 30);
    cr_assert(parse(&s, &err, "--memory-limit", "12345") == 0 && s.memory_limit == 12345);
}

Test(settings, wrong_values_name_their_source) {
    static const struct {
        const char *a, *b, *says;
    } cases[] = {
        {"--port", "65536", "--port: 65536 is outside 0..65535"},
        {"--port", " 1", "--port: ' 1' is not a whole number"},
        {"--port", "99999999999999999999", "--port: '99999999999999999999' is not a whole number"},
        {"--port", "", "--port: '' is not a whole number"},
        {"--max-body", "1023", "--max-body: 1023 is outside"},
        {"--max-body", "1Kb", "--max-body: '1Kb' is not a whole number"},
        {"--max-body", "K", "--max-body: 'K' is not a whole number"},
        {"--max-body", "9999999999G", "--max-body: 9223372036854775807 is outside"},
        {"--port", "1K", "--port: '1K' is not a whole number"},
        {"--gpu-memory-fraction", "0", "--gpu-memory-fraction: '0' is not above 0 and at most 1"},
        {"--gpu-memory-fraction", "1.01",
         "--gpu-memory-fraction: '1.01' is not above 0 and at most 1"},
        {"--gpu-memory-fraction", "nan",
         "--gpu-memory-fraction: 'nan' is not above 0 and at most 1"},
        {"--gpu-memory-fraction", "0.5x",
         "--gpu-memory-fraction: '0.5x' is not above 0 and at most 1"},
        {"--kv", "f16|f32", "--kv: 'f16|f32' is not one of |f16|f32|int8|"},
        {"--cors", "x\r\ny", "--cors must not hold control characters"},
        {"--log-level", "loud", "--log-level: 'loud' is not one of"},
        {"a", "b", "one MODEL only, not also 'b'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct settings s = {.port = -5};
        struct error err;
        cr_expect(parse(&s, &err, cases[i].a, cases[i].b) == -EINVAL);
        cr_expect(!strncmp(err.text, cases[i].says, strlen(cases[i].says)), "%s", err.text);
        cr_expect(s.port == -5, "written in spite of the failure");
    }
    setenv("GPTQT_PORT", "many", 1);
    struct settings s;
    struct error err;
    cr_expect(parse(&s, &err, NULL, NULL) == -EINVAL);
    cr_expect(!strcmp(err.text, "GPTQT_PORT: 'many' is not a whole number"), "%s", err.text);
}
