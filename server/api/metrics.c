#include "server/api/api.h"

#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "server/http.h"
#include "server/log.h"
#include "server/prom.h"
#include "server/server.h"

struct row { /* one number */
    const char *name, *type, *help;
    double value;
};

static void add_rows(struct text *out, const struct row *rows, size_t n, const char *labels) {
    for (size_t i = 0; i < n; i++)
        prom_family(out, rows[i].name, rows[i].type, rows[i].help, labels, rows[i].value);
}

static void add_info(struct text *out, const struct server *s) {
    struct text labels = {0};
    char bits[16];
    snprintf(bits, sizeof bits, "%d", s->info ? s->info->bits : 0);
    prom_label(&labels, "version", GPTQT_VERSION);
    prom_label(&labels, "model", s->model);
    prom_label(&labels, "backend", s->info ? s->info->backend : "");
    prom_label(&labels, "bits", bits);
    prom_family(out, "gptqt_build_info", "gauge", "The program and its model.", labels.data, 1);
    text_deinit(&labels);
}

static double kv_used(const struct engine_stats *e) {
    return e->kv_blocks ? 1 - (double)e->kv_blocks_free / (double)e->kv_blocks : 0;
}

static double hit_rate(const struct engine_stats *e) {
    return e->prefix_queries ? (double)e->prefix_hits / (double)e->prefix_queries : 0;
}

static void add_engine(struct text *out, const struct engine_stats *e) {
    const struct row rows[] = {
        {"gptqt_ready", "gauge", "1 while new requests are served.",
         e->ready && !e->draining && !e->failed},
        {"gptqt_load_ratio", "gauge", "Loaded share of the weights, 0 to 1.",
         e->ready || !e->load_total ? e->ready : (double)e->load_done / (double)e->load_total},
        {"gptqt_requests_running", "gauge", "Sequences being computed.", e->running},
        {"gptqt_requests_waiting", "gauge", "Sequences queued, preempted ones too.", e->waiting},
        {"gptqt_requests_paused", "gauge", "Sequences that wait for slow readers.", e->paused},
        {"gptqt_requests_running_limit", "gauge", "Most sequences computed.", e->max_running},
        {"gptqt_requests_waiting_limit", "gauge", "Most sequences queued.", e->max_waiting},
        {"gptqt_waiting_tokens", "gauge", "Prompt tokens that are still to be computed.",
         (double)e->waiting_tokens},
        {"gptqt_kv_blocks", "gauge", "Blocks of the KV cache.", (double)e->kv_blocks},
        {"gptqt_kv_blocks_free", "gauge", "Free blocks.", (double)e->kv_blocks_free},
        {"gptqt_kv_blocks_cached", "gauge", "Of the free ones: hold the beginning of a prompt.",
         (double)e->kv_blocks_cached},
        {"gptqt_kv_used_ratio", "gauge", "Used share of the blocks, 0 to 1.", kv_used(e)},
        {"gptqt_sequences_total", "counter", "Sequences submitted.", (double)e->requests},
        {"gptqt_sequences_finished_total", "counter", "Sequences that ended well.",
         (double)e->finished},
        {"gptqt_sequences_failed_total", "counter", "Sequences that failed.", (double)e->failures},
        {"gptqt_sequences_cancelled_total", "counter", "Sequences given up.", (double)e->cancelled},
        {"gptqt_sequences_timed_out_total", "counter", "Sequences over a deadline.",
         (double)e->timeouts},
        {"gptqt_preemptions_total", "counter", "Sequences that lost their blocks for a while.",
         (double)e->preemptions},
        {"gptqt_prompt_tokens_total", "counter", "Prompt tokens computed.",
         (double)e->prompt_tokens},
        {"gptqt_generated_tokens_total", "counter", "Tokens generated.",
         (double)e->generated_tokens},
        {"gptqt_prefix_query_tokens_total", "counter", "Prompt tokens looked up in the cache.",
         (double)e->prefix_queries},
        {"gptqt_prefix_hit_tokens_total", "counter", "Prompt tokens found in the cache.",
         (double)e->prefix_hits},
        {"gptqt_draft_tokens_total", "counter", "Tokens guessed ahead.", (double)e->draft_tokens},
        {"gptqt_draft_accepted_total", "counter", "Guessed tokens that were right.",
         (double)e->draft_accepted},
        {"gptqt_steps_total", "counter", "Steps of the engine.", (double)e->steps},
        {"gptqt_busy_seconds_total", "counter", "Time inside steps.", e->busy_seconds},
    };
    add_rows(out, rows, sizeof rows / sizeof *rows, NULL);
}

/* The names that routers read without being told, the present generation and the one before. */
static void add_vllm(struct text *out, const struct engine_stats *e, const char *labels) {
    const struct row rows[] = {
        {"vllm:num_requests_running", "gauge", "Requests running.", e->running},
        {"vllm:num_requests_waiting", "gauge", "Requests waiting.", e->waiting},
        {"vllm:kv_cache_usage_perc", "gauge", "Used share of the KV cache, 0 to 1.", kv_used(e)},
        {"vllm:gpu_cache_usage_perc", "gauge", "Deprecated name of vllm:kv_cache_usage_perc.",
         kv_used(e)},
        {"vllm:prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache.",
         (double)e->prefix_queries},
        {"vllm:prefix_cache_hits_total", "counter", "Tokens found in the prefix cache.",
         (double)e->prefix_hits},
        {"vllm:gpu_prefix_cache_queries_total", "counter",
         "Deprecated name of vllm:prefix_cache_queries.", (double)e->prefix_queries},
        {"vllm:gpu_prefix_cache_hits_total", "counter",
         "Deprecated name of vllm:prefix_cache_hits.", (double)e->prefix_hits},
        {"vllm:gpu_prefix_cache_hit_rate", "gauge", "Found share of the tokens looked up, 0 to 1.",
         hit_rate(e)},
        {"vllm:num_preemptions_total", "counter", "Preemptions.", (double)e->preemptions},
        {"vllm:prompt_tokens_total", "counter", "Prompt tokens computed.",
         (double)e->prompt_tokens},
        {"vllm:generation_tokens_total", "counter", "Tokens generated.",
         (double)e->generated_tokens},
        {"vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens guessed ahead.",
         (double)e->draft_tokens},
        {"vllm:spec_decode_num_accepted_tokens_total", "counter", "Guessed tokens accepted.",
         (double)e->draft_accepted},
    };
    add_rows(out, rows, sizeof rows / sizeof *rows, labels);
}

static void add_cache_config(struct text *out, const struct server *s, const struct engine_stats *e,
                             const char *vllm) {
    char block[16], blocks[24];
    struct text labels = {0};
    snprintf(block, sizeof block, "%d", s->info ? s->info->kv_block_tokens : 0);
    snprintf(blocks, sizeof blocks, "%lld", (long long)e->kv_blocks);
    text_adds(&labels, vllm);
    prom_label(&labels, "block_size", block);
    prom_label(&labels, "num_gpu_blocks", blocks);
    prom_family(out, "vllm:cache_config_info", "gauge", "The KV cache.", labels.data, 1);
    text_deinit(&labels);
}

static double resident_bytes(void) {
    long long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%lld %lld", &pages, &resident) != 2) resident = 0;
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

static void add_process(struct text *out, const struct server *s) {
    struct rusage u = {0};
    getrusage(RUSAGE_SELF, &u);
    double cpu = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                 (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
    const struct row rows[] = {
        {"gptqt_connections", "gauge", "Open connections.", http_connections(s->http)},
        {"gptqt_exchanges_active", "gauge", "Requests without a whole answer.",
         http_active(s->http)},
        {"gptqt_log_lines_lost_total", "counter", "Lines that nobody took.", (double)log_lost()},
        {"gptqt_upload_bytes", "gauge", "Bodies of requests that are not answered yet.",
         (double)http_uploads(s->http)},
        {"gptqt_stream_bytes", "gauge", "Text that clients have not read yet.",
         (double)http_queued(s->http)},
        {"process_start_time_seconds", "gauge", "When the process started, since 1970.",
         (double)s->created},
        {"process_resident_memory_bytes", "gauge", "Memory in use.", resident_bytes()},
        {"process_cpu_seconds_total", "counter", "Processor time.", cpu},
    };
    add_rows(out, rows, sizeof rows / sizeof *rows, NULL);
}

static void add_arena(struct text *out, const char *arena, int64_t bytes) {
    struct text labels = {0};
    prom_label(&labels, "arena", arena);
    if (labels.failed)
        out->failed = true;
    else
        prom_sample(out, "gptqt_memory_bytes", labels.data, (double)bytes);
    text_deinit(&labels);
}

static void add_memory(struct text *out, const struct server *s) {
    prom_head(out, "gptqt_memory_bytes", "gauge", "The most that each part may take.");
    if (s->info) {
        add_arena(out, "weights", (int64_t)s->info->weight_bytes);
        add_arena(out, "kv", (int64_t)s->info->kv_bytes);
        add_arena(out, "work", (int64_t)s->info->work_bytes);
    }
    for (int i = 0; i < BUDGET_PARTS; i++)
        add_arena(out, budget_part_name((enum budget_part)i), s->budget.parts[i]);
}

void api_metrics(struct server *s, struct http_exchange *x) {
    struct text body = {0}, vllm = {0};
    struct engine_stats stats;
    engine_get_stats(s->engine, &stats);
    s->metrics.scrapes++;
    prom_label(&vllm, "model_name", s->model);
    prom_label(&vllm, "engine", "0");
    if (vllm.failed) {
        http_abort(x);
        return;
    }
    add_info(&body, s);
    add_engine(&body, &stats);
    add_process(&body, s);
    add_memory(&body, s);
    add_vllm(&body, &stats, vllm.data);
    add_cache_config(&body, s, &stats, vllm.data);
    metrics_render(&body, &s->metrics, vllm.data, s->info ? s->info->context : 0);
    text_deinit(&vllm);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}
