#include "server/access_log.h"

#include "server/text.h"

static void add_ms(struct text *out, const char *format, int64_t ns) {
    if (ns >= 0) text_addf(out, format, (double)ns / 1e6);
}

static void add_name(struct text *out, const char *name, const char *value) {
    if (value && *value) text_addf(out, " %s=%s", name, value);
}

void access_log_text(struct text *out, const struct access_record *r) {
    text_addf(out, "%s %s %d", r->method, r->path, r->status);
    add_ms(out, " %.1fms", r->total_ns);
    add_ms(out, " queue=%.1fms", r->queue_ns);
    add_ms(out, " ttft=%.1fms", r->first_ns);
    text_addf(out, " prompt=%d cached=%d generated=%d", r->n_prompt, r->n_cached, r->n_generated);
    add_name(out, "finish", r->finish);
    add_name(out, "key", r->key);
    add_name(out, "client", r->client);
    add_name(out, "id", r->request_id);
    if (r->left) text_adds(out, " client left");
}

static void add_member(struct text *out, const char *name, const char *value) {
    if (!value || !*value) return;
    text_addf(out, ",\"%s\":", name);
    text_add_json(out, value);
}

void access_log_json(struct text *out, const struct access_record *r) {
    text_addf(out, "\"status\":%d,\"method\":", r->status);
    text_add_json(out, r->method);
    add_member(out, "path", r->path);
    add_member(out, "request_id", r->request_id);
    add_member(out, "key", r->key);
    add_member(out, "client", r->client);
    add_ms(out, ",\"total_ms\":%.3f", r->total_ns);
    add_ms(out, ",\"queue_ms\":%.3f", r->queue_ns);
    add_ms(out, ",\"ttft_ms\":%.3f", r->first_ns);
    text_addf(out, ",\"prompt_tokens\":%d,\"cached_tokens\":%d,\"generated_tokens\":%d",
              r->n_prompt, r->n_cached, r->n_generated);
    add_member(out, "finish", r->finish);
    if (r->left) text_adds(out, ",\"client_left\":true");
}
