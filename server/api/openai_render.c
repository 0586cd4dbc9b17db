#include "server/api/openai_render.h"

#include <string.h>

#include "server/text.h"

static const char *object_name(const struct openai_render *r) {
    if (r->kind == OPENAI_COMPLETION) return "text_completion";
    return r->stream ? "chat.completion.chunk" : "chat.completion";
}

void openai_render_head(struct text *out, const struct openai_render *render) {
    text_adds(out, "{\"id\":");
    text_add_json(out, render->id);
    text_addf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object_name(render),
              (long long)render->created);
    text_add_json(out, render->model);
    text_adds(out, ",\"system_fingerprint\":");
    text_add_json(out, render->fingerprint);
    text_adds(out, ",\"choices\":[");
}

static void add_end(struct text *out, const struct openai_delta *delta) {
    text_adds(out, ",\"logprobs\":");
    if (delta->logprobs)
        text_add(out, delta->logprobs, delta->logprobs_len);
    else
        text_adds(out, "null");
    text_adds(out, ",\"finish_reason\":");
    text_add_json(out, delta->finish);
    if (delta->extra) text_adds(out, delta->extra);
    text_adds(out, "}");
}

static void open_chunk(struct text *out, const struct text *head) {
    text_adds(out, "data: ");
    text_add(out, head->data, head->n);
}

void openai_render_usage(struct text *out, const struct openai_usage *usage) {
    text_addf(out,
              "{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
              "\"prompt_tokens_details\":{\"cached_tokens\":%d}}",
              usage->n_prompt, usage->n_generated, usage->n_prompt + usage->n_generated,
              usage->n_cached);
}

static void close_chunk(struct text *out, const struct openai_render *render,
                        const struct openai_delta *delta) {
    text_adds(out, "]");
    if (delta->top) text_adds(out, delta->top);
    if (delta->usage) {
        text_adds(out, ",\"usage\":");
        openai_render_usage(out, delta->usage);
        text_adds(out, "}\n\n");
    } else {
        text_adds(out, render->usage_key ? ",\"usage\":null}\n\n" : "}\n\n");
    }
}

void openai_render_chunk(struct text *out, const struct openai_render *render,
                         const struct text *head, const struct openai_delta *delta) {
    open_chunk(out, head);
    text_addf(out, "{\"index\":%d,", delta->index);
    /* A chat's last chunk has an empty delta; a completion's always has its text. */
    bool empty = render->kind == OPENAI_CHAT && delta->text_len == 0;
    if (empty) {
        text_adds(out, "\"delta\":{}");
    } else {
        text_adds(out, render->kind == OPENAI_CHAT ? "\"delta\":{\"content\":\"" : "\"text\":\"");
        text_add_escaped(out, delta->text, delta->text_len);
        text_adds(out, render->kind == OPENAI_CHAT ? "\"}" : "\"");
    }
    add_end(out, delta);
    close_chunk(out, render, delta);
}

void openai_render_role(struct text *out, const struct openai_render *render,
                        const struct text *head, const struct openai_delta *delta) {
    open_chunk(out, head);
    text_addf(out, "{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}",
              delta->index);
    add_end(out, delta);
    close_chunk(out, render, delta);
}

void openai_render_usage_chunk(struct text *out, const struct text *head,
                               const struct openai_usage *usage) {
    open_chunk(out, head);
    openai_render_tail(out, NULL, usage);
    text_adds(out, "\n\n");
}

void openai_render_choice(struct text *out, const struct openai_render *render,
                          const struct openai_delta *delta) {
    text_addf(out, "{\"index\":%d,", delta->index);
    bool chat = render->kind == OPENAI_CHAT;
    text_adds(out, chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"text\":\"");
    text_add_escaped(out, delta->text, delta->text_len);
    text_adds(out, chat ? "\",\"refusal\":null}" : "\"");
    add_end(out, delta);
}

void openai_render_tail(struct text *out, const char *top, const struct openai_usage *usage) {
    text_adds(out, "]");
    if (top) text_adds(out, top);
    text_adds(out, ",\"usage\":");
    openai_render_usage(out, usage);
    text_adds(out, "}");
}
