#include "server/api/openai_response.h"

#include <string.h>

#include "server/text.h"

static void add_escaped(struct text *out, const struct openai_response *r) {
    if (r->text_len) text_add_escaped(out, r->text, r->text_len);
}

static void add_part(struct text *out, const struct openai_response *r) {
    text_adds(out, "{\"type\":\"output_text\",\"text\":\"");
    add_escaped(out, r);
    text_adds(out, "\",\"annotations\":[],\"logprobs\":[]}");
}

static void add_message(struct text *out, const struct openai_response *r, const char *status,
                        bool part) {
    text_addf(out,
              "{\"id\":\"msg_%s\",\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\","
              "\"content\":[",
              r->own_id, status);
    if (part) add_part(out, r);
    text_adds(out, "]}");
}

static void add_usage(struct text *out, const struct openai_usage *usage) {
    if (!usage) {
        text_adds(out, "null");
        return;
    }
    text_addf(out,
              "{\"input_tokens\":%d,\"input_tokens_details\":"
              "{\"cached_tokens\":%d,\"cache_write_tokens\":0},"
              "\"output_tokens\":%d,\"output_tokens_details\":{\"reasoning_tokens\":0},"
              "\"total_tokens\":%d}",
              usage->n_prompt, usage->n_cached, usage->n_generated,
              usage->n_prompt + usage->n_generated);
}

/* What was asked for, as OpenAI repeats it. */
static void add_wishes(struct text *out, const struct openai_request *wanted) {
    text_adds(out, ",\"instructions\":");
    text_add_json(out, wanted->instructions);
    if (wanted->max_tokens > 0)
        text_addf(out, ",\"max_output_tokens\":%d", wanted->max_tokens);
    else
        text_adds(out, ",\"max_output_tokens\":null");
    text_addf(out,
              ",\"background\":false,\"metadata\":{},\"parallel_tool_calls\":true,"
              "\"previous_response_id\":null,\"reasoning\":{\"effort\":null,\"summary\":null},"
              "\"service_tier\":\"default\",\"store\":false,\"temperature\":%.7g,"
              "\"text\":{\"format\":{\"type\":\"text\"}},\"tool_choice\":\"auto\",\"tools\":[],"
              "\"top_p\":%.7g,\"truncation\":\"%s\",\"user\":null",
              (double)wanted->sampling.temperature, (double)wanted->sampling.top_p,
              wanted->truncate_prompt ? "auto" : "disabled");
}

void openai_response_render(struct text *out, const struct openai_response *r) {
    bool begun = strcmp(r->status, "in_progress") != 0 && !r->error;
    text_adds(out, "{\"id\":");
    text_add_json(out, r->id);
    text_addf(out, ",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\",\"error\":",
              (long long)r->created, r->status);
    text_adds(out, r->error ? r->error : "null");
    text_adds(out, ",\"incomplete_details\":");
    text_adds(out,
              !strcmp(r->status, "incomplete") ? "{\"reason\":\"max_output_tokens\"}" : "null");
    text_adds(out, ",\"model\":");
    text_add_json(out, r->model);
    text_adds(out, ",\"output\":[");
    if (begun) add_message(out, r, r->status, true);
    text_adds(out, "]");
    add_wishes(out, r->wanted);
    text_adds(out, ",\"usage\":");
    add_usage(out, r->usage);
    text_adds(out, "}");
}

static void open_event(struct text *out, const char *type, int number) {
    text_addf(out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%d", type, type, number);
}

static void close_event(struct text *out) { text_adds(out, "}\n\n"); }

void openai_response_event(struct text *out, const char *type, int number,
                           const struct openai_response *r) {
    open_event(out, type, number);
    text_adds(out, ",\"response\":");
    openai_response_render(out, r);
    close_event(out);
}

static void open_part_event(struct text *out, const char *type, int number,
                            const struct openai_response *r) {
    open_event(out, type, number);
    text_addf(out, ",\"item_id\":\"msg_%s\",\"output_index\":0,\"content_index\":0", r->own_id);
}

int openai_response_begin(struct text *out, int number, const struct openai_response *r) {
    struct openai_response empty = *r;
    empty.text_len = 0;
    open_event(out, "response.output_item.added", number);
    text_adds(out, ",\"output_index\":0,\"item\":");
    add_message(out, &empty, "in_progress", false);
    close_event(out);
    open_part_event(out, "response.content_part.added", number + 1, r);
    text_adds(out, ",\"part\":");
    add_part(out, &empty);
    close_event(out);
    return 2;
}

void openai_response_delta(struct text *out, int number, const struct openai_response *r,
                           const char *text, size_t n) {
    open_part_event(out, "response.output_text.delta", number, r);
    text_adds(out, ",\"delta\":\"");
    text_add_escaped(out, text, n);
    text_adds(out, "\",\"logprobs\":[]");
    close_event(out);
}

int openai_response_end(struct text *out, int number, const struct openai_response *r) {
    open_part_event(out, "response.output_text.done", number, r);
    text_adds(out, ",\"text\":\"");
    add_escaped(out, r);
    text_adds(out, "\",\"logprobs\":[]");
    close_event(out);
    open_part_event(out, "response.content_part.done", number + 1, r);
    text_adds(out, ",\"part\":");
    add_part(out, r);
    close_event(out);
    open_event(out, "response.output_item.done", number + 2);
    text_adds(out, ",\"output_index\":0,\"item\":");
    add_message(out, r, r->status, true);
    close_event(out);
    return 3;
}
