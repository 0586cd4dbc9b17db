#include "tests/support/offline_fixture.h"

#include <criterion/criterion.h>

#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

void offline_fixture_open(struct offline *ret, const char *name, int tokens) {
    char path[SCRATCH_PATH];
    struct source *src;
    struct error err;
    struct offline_options options = {
        .backend = {.name = "cpu", .n_threads = 1},
        .model = {.kv_type = DTYPE_F32, .max_batch_tokens = tokens, .max_logit_rows = tokens},
        .context = tokens};
    const char *from = name[0] == '/' ? name : scratch_fixture(path, name);
    cr_assert_eq(source_open(&src, from, &err), 0, "%s", err.text);
    cr_assert_eq(offline_open(ret, src, &options, &err), 0, "%s", err.text);
}
