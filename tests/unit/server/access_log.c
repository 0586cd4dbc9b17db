#include "server/access_log.h"

#include <criterion/criterion.h>
#include <string.h>

#include "server/text.h"

static void expect(void (*render)(struct text *, const struct access_record *),
                   const struct access_record *record, const char *expected) {
    struct text line = {0};
    render(&line, record);
    cr_expect(!line.failed && !strcmp(line.data, expected), "%s", line.data);
    text_deinit(&line);
}

Test(access_log, line_has_all_that_is_known) {
    const struct access_record record = {.request_id = "r-1",
                                         .key = "team",
                                         .client = "::1",
                                         .method = "POST",
                                         .path = "/v1/\"x\"\n",
                                         .finish = "stop",
                                         .status = 200,
                                         .left = true,
                                         .queue_ns = 500000,
                                         .first_ns = 1500000,
                                         .total_ns = 20000000,
                                         .n_prompt = 7,
                                         .n_cached = 4,
                                         .n_generated = 3};
    expect(access_log_text, &record,
           "POST /v1/\"x\"\n 200 20.0ms queue=0.5ms ttft=1.5ms prompt=7 cached=4 generated=3 "
           "finish=stop key=team client=::1 id=r-1 client left");
    expect(
        access_log_json, &record,
        "\"status\":200,\"method\":\"POST\",\"path\":\"/v1/\\\"x\\\"\\n\",\"request_id\":\"r-1\","
        "\"key\":\"team\",\"client\":\"::1\",\"total_ms\":20.000,\"queue_ms\":0.500,"
        "\"ttft_ms\":1.500,\"prompt_tokens\":7,\"cached_tokens\":4,\"generated_tokens\":3,"
        "\"finish\":\"stop\",\"client_left\":true");
}

Test(access_log, what_is_not_known_is_left_out) {
    const struct access_record record = {
        .method = "GET", .path = "/", .key = "", .status = 404, .queue_ns = -1, .first_ns = -1};
    expect(access_log_text, &record, "GET / 404 0.0ms prompt=0 cached=0 generated=0");
    expect(access_log_json, &record,
           "\"status\":404,\"method\":\"GET\",\"path\":\"/\",\"total_ms\":0.000,"
           "\"prompt_tokens\":0,\"cached_tokens\":0,\"generated_tokens\":0");
}
