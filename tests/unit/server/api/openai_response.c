#include "server/api/openai_response.h"

#include <criterion/criterion.h>
#include <string.h>

#include "server/text.h"

static char instructions[] = "be";
static struct openai_request wanted = {
    .instructions = instructions, .max_tokens = 9, .truncate_prompt = -1};
static const struct openai_usage usage = {3, 4, 2};

static struct openai_response response(void) {
    sampler_defaults(&wanted.sampling);
    wanted.sampling.temperature = 0.5f;
    return (struct openai_response){.id = "resp_1",
                                    .own_id = "1",
                                    .model = "m\"",
                                    .created = 7,
                                    .status = "completed",
                                    .wanted = &wanted,
                                    .text = "a\n",
                                    .text_len = 2,
                                    .usage = &usage};
}

static void expect(struct text *t, const char *expected) {
    cr_expect(t->n == strlen(expected) && !strcmp(t->data, expected), "%s\nis not\n%s", t->data,
              expected);
    text_deinit(t);
}

#define WISHES                                                                                     \
    ",\"instructions\":\"be\",\"max_output_tokens\":9,\"background\":false,\"metadata\":{},"       \
    "\"parallel_tool_calls\":true,\"previous_response_id\":null,"                                  \
    "\"reasoning\":{\"effort\":null,\"summary\":null},\"service_tier\":\"default\","               \
    "\"store\":false,\"temperature\":0.5,\"text\":{\"format\":{\"type\":\"text\"}},"               \
    "\"tool_choice\":\"auto\",\"tools\":[],\"top_p\":1,\"truncation\":\"auto\",\"user\":null"
#define PART "{\"type\":\"output_text\",\"text\":\"a\\n\",\"annotations\":[],\"logprobs\":[]}"
#define MESSAGE(status, content)                                                                   \
    "{\"id\":\"msg_1\",\"type\":\"message\",\"status\":\"" status                                  \
    "\",\"role\":\"assistant\",\"content\":[" content "]}"

Test(openai_response, object) {
    struct text out = {0};
    struct openai_response r = response();
    openai_response_render(&out, &r);
    expect(
        &out,
        "{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":7,"
        "\"status\":\"completed\",\"error\":null,\"incomplete_details\":null,"
        "\"model\":\"m\\\"\",\"output\":[" MESSAGE(
            "completed",
            PART) "]" WISHES
                  ",\"usage\":{\"input_tokens\":3,\"input_tokens_details\":"
                  "{\"cached_tokens\":2,\"cache_write_tokens\":0},"
                  "\"output_tokens\":4,\"output_tokens_details\":{\"reasoning_tokens\":0},"
                  "\"total_tokens\":7}}");
    r.status = "in_progress";
    r.usage = NULL;
    openai_response_event(&out, "response.created", 0, &r);
    expect(&out, "event: response.created\ndata: {\"type\":\"response.created\","
                 "\"sequence_number\":0,\"response\":{\"id\":\"resp_1\",\"object\":\"response\","
                 "\"created_at\":7,\"status\":\"in_progress\",\"error\":null,"
                 "\"incomplete_details\":null,\"model\":\"m\\\"\",\"output\":[]" WISHES
                 ",\"usage\":null}}\n\n");
}

#define EVENT(type, number)                                                                        \
    "event: response." type "\ndata: {\"type\":\"response." type "\",\"sequence_number\":" number
#define PLACE ",\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0"

Test(openai_response, events_of_the_message) {
    struct text out = {0};
    struct openai_response r = response();
    cr_expect(openai_response_begin(&out, 2, &r) == 2);
    expect(&out, EVENT("output_item.added", "2") ",\"output_index\":0,\"item\":" MESSAGE(
                     "in_progress", "") "}\n\n" EVENT("content_part.added", "3") PLACE
           ",\"part\":{\"type\":\"output_text\",\"text\":\"\",\"annotations\":[],"
           "\"logprobs\":[]}}\n\n");
    openai_response_delta(&out, 4, &r, "b\"", 2);
    expect(&out, EVENT("output_text.delta", "4") PLACE ",\"delta\":\"b\\\"\",\"logprobs\":[]}\n\n");
    cr_expect(openai_response_end(&out, 5, &r) == 3);
    expect(&out, EVENT("output_text.done", "5") PLACE
           ",\"text\":\"a\\n\",\"logprobs\":[]}\n\n" EVENT("content_part.done", "6") PLACE
           ",\"part\":" PART
           "}\n\n" EVENT("output_item.done",
                         "7") ",\"output_index\":0,\"item\":" MESSAGE("completed", PART) "}\n\n");
}
