#include "server/budget.h"

#include <criterion/criterion.h>
#include <string.h>

#include "kernels/error.h"
#include "server/api/openai_parse.h"
#include "server/http.h"

#define MIB INT64_C(1048576)

static const struct budget_facts usual = {
    .connections = 1024, .uploads = 256 * MIB, .body = 2 * MIB, .running = 32, .parsers = 2};

Test(budget, without_a_limit_everything_has_its_own) {
    struct budget b;
    struct budget_facts f = usual;
    cr_assert(budget_plan(&b, &f, NULL) == 0 && b.engine == 0);
    cr_expect(b.parts[BUDGET_UPLOADS] == 256 * MIB && b.parts[BUDGET_STREAMS] == 32 * MIB);
    cr_expect(b.parts[BUDGET_PARSING] == 2 * OPENAI_MAX_HEAP);
}

Test(budget, the_engine_gets_the_rest_and_sums_are_right) {
    struct budget b;
    struct budget_facts f = usual;
    for (f.limit = 192 * MIB; f.limit < 1 << 30; f.limit += 7 * MIB + 1) {
        int64_t sum = 0;
        cr_assert(budget_plan(&b, &f, NULL) == 0);
        for (int i = 0; i < BUDGET_PARTS; i++) {
            cr_assert(b.parts[i] > 0);
            sum += b.parts[i];
        }
        cr_assert(sum == b.server && sum + b.engine == f.limit && b.engine > 0);
        cr_assert(b.parts[BUDGET_UPLOADS] == f.limit / 16);
    }
}

Test(budget, one_body_and_one_stream_always_fit) {
    struct budget b;
    struct budget_facts f = usual;
    f.limit = 400 * MIB;
    f.body = 64 * MIB;
    f.running = 1;
    cr_assert(budget_plan(&b, &f, NULL) == 0);
    cr_expect(b.parts[BUDGET_UPLOADS] == 64 * MIB && b.parts[BUDGET_STREAMS] == HTTP_QUEUE_LIMIT);
}

Test(budget, what_was_asked_for_is_never_raised) {
    struct budget b;
    struct budget_facts f = usual;
    f.uploads = 1000;
    cr_assert(budget_plan(&b, &f, NULL) == 0 && b.parts[BUDGET_UPLOADS] == 1000);
    f.limit = 400 * MIB;
    cr_assert(budget_plan(&b, &f, NULL) == 0 && b.parts[BUDGET_UPLOADS] == 1000);
}

Test(budget, too_small_a_limit_is_refused_with_the_sums) {
    struct budget b = {.server = 7};
    struct budget_facts f = usual;
    struct error err;
    f.limit = 100 * MIB;
    cr_assert(budget_plan(&b, &f, &err) < 0 && b.server == 7);
    cr_expect(strstr(err.text, "memory-limit: 100.0 MiB") && strstr(err.text, "parsing 80.0"));
}
