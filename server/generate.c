#include "server/generate.h"

#include "engine/source.h"
#include "kernels/error.h"

static void wake(void *arg) {
    struct generator *g = arg;
    pthread_mutex_lock(&g->lock);
    g->woken = true;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->lock);
}

int generate_open(struct generator *g, struct source *src, const struct engine_options *options,
                  struct error *err) {
    *g = (struct generator){0};
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->wake, NULL);
    struct engine_options own = *options;
    own.wake = wake;
    own.wake_arg = g;
    int r = engine_open(&g->engine, src, &own, err);
    if (r < 0) source_close(src);
    return r;
}

void generate_close(struct generator *g) {
    engine_close(g->engine);
    pthread_cond_destroy(&g->wake);
    pthread_mutex_destroy(&g->lock);
}

static void wait_for_events(struct generator *g) {
    pthread_mutex_lock(&g->lock);
    while (!g->woken) pthread_cond_wait(&g->wake, &g->lock);
    g->woken = false;
    pthread_mutex_unlock(&g->lock);
}

struct run {
    bool (*on_text)(void *arg, const char *text, size_t n);
    void *arg;
    bool ended, stop;
    int code;
};

static void take(struct run *run, const struct engine_event *event, struct generate_result *ret,
                 struct error *err) {
    if (event->kind == ENGINE_FAILED) {
        run->code = error_set(err, event->code, "%s", event->text ? event->text : "failed");
        run->ended = true;
        return;
    }
    if (event->text_len && !run->stop)
        run->stop = !run->on_text(run->arg, event->text, event->text_len);
    if (event->kind != ENGINE_DONE) return;
    *ret = (struct generate_result){event->finish, event->n_prompt, event->n_generated};
    run->ended = true;
}

int generate_run(struct generator *g, struct engine_request *request,
                 bool (*on_text)(void *arg, const char *text, size_t n), void *arg,
                 struct generate_result *ret, struct error *err) {
    uint64_t ticket;
    int r = engine_submit(g->engine, &ticket, request, err);
    if (r < 0) {
        engine_request_free(request);
        return r;
    }
    struct run run = {.on_text = on_text, .arg = arg};
    while (!run.ended) {
        wait_for_events(g);
        struct engine_event *next, *event = engine_poll(g->engine);
        for (; event; event = next) {
            next = event->next;
            take(&run, event, ret, err);
            engine_event_free(event);
        }
        if (run.stop) engine_cancel(g->engine, ticket);
    }
    return run.code;
}
