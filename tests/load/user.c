#include "tests/load/user.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* DESIGN. busy: a question is asked and has no outcome. The socket's life is separate from it:
 * open (a handle that must be closed), connected, closing. A busy user whose socket is closed opens
 * a new one and asks again, in on_closed(). One timer serves, as a user never waits for two
 * things: it reconnects, pauses its reading, or is about to give up. */

enum {
    RECONNECT_MS = 20,
    EARLY_MS = 8,   /* a question given up before its answer begins */
    UNREAD_MS = 150 /* one whose answer lies there unread */
};

static char read_buffer[64 << 10]; /* one thread, and what is read is used at once */

uint64_t crowd_random(struct crowd *c) {
    uint64_t z = c->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void drop_socket(struct user *u);
static void open_socket(struct user *u);
static void wait_for(struct user *u, enum user_job job, uint64_t ms);

/* -- Outcomes ------------------------------------------------------------------------------ */

static void write_raw(struct user *u, const char *outcome, int64_t now) {
    FILE *out = u->crowd->report.raw;
    if (!out) return;
    fprintf(out,
            "{\"t_us\":%" PRId64
            ",\"kind\":\"%s\",\"key\":%d,\"outcome\":\"%s\",\"ttft_us\":%" PRId64
            ",\"e2e_us\":%" PRId64 ",\"prompt\":%d,\"tokens\":%d,\"gaps_us\":[",
            u->since_ns / 1000, cases_name(u->question.kind), u->key, outcome,
            u->first_ns ? (u->first_ns - u->since_ns) / 1000 : -1, (now - u->since_ns) / 1000,
            u->answer.n_prompt, u->answer.n_generated);
    for (int i = 0; i < u->n_gaps; i++) fprintf(out, "%s%d", i ? "," : "", u->gaps[i]);
    fprintf(out, "]}\n");
}

static void end_question(struct user *u, enum outcome outcome, const char *why) {
    static const char *const names[OUTCOMES] = {"ok", "refused", "cancelled", "lost", "wrong"};
    struct crowd *c = u->crowd;
    u->busy = false;
    uv_timer_stop(&u->timer);
    u->job = JOB_NONE;
    report_outcome(&c->report, u->question.kind, outcome, u->question.id, why);
    write_raw(u, names[outcome], (int64_t)uv_hrtime());
    /* A half-read answer would be taken for the next one's beginning. */
    if (outcome != OUTCOME_OK && outcome != OUTCOME_REFUSED) drop_socket(u);
    if (!u->closing) c->idle(u);
}

static void lose(struct user *u, const char *why) {
    struct crowd *c = u->crowd;
    if (u->question.kind == CASE_CANCEL && u->given_up) {
        end_question(u, OUTCOME_CANCELLED, NULL);
    } else if (c->patient && u->n_bytes == 0) {
        c->report.retries++;
        u->tries++;
        if (u->open)
            drop_socket(u);
        else
            wait_for(u, JOB_RECONNECT, RECONNECT_MS);
    } else {
        end_question(u, OUTCOME_LOST, why);
    }
}

static void give_up(struct user *u) {
    const char *why = answer_check_part(&u->answer);
    u->given_up = true;
    end_question(u, why ? OUTCOME_WRONG : OUTCOME_CANCELLED, why);
}

/* How far each token was behind the timetable that the stream's best token sets. */
static void report_lateness(struct user *u) {
    int64_t best = INT64_MAX;
    for (int64_t i = 0; i < u->n_due; i++)
        if (u->due[i] < best) best = u->due[i];
    for (int64_t i = 0; i < u->n_due; i++)
        report_span(&u->crowd->report, SPAN_LATE, u->due[i] - best);
}

static void take_answer(struct user *u) {
    struct crowd *c = u->crowd;
    int64_t now = (int64_t)uv_hrtime(), took = now - u->since_ns;
    const struct reply *reply = &u->reply;
    const char *why = NULL;
    bool refused = (reply->status == 429 || reply->status == 503);
    if (c->ids && strcmp(reply->id, u->question.id) != 0)
        why = "the answer has another request's id";
    if (refused) {
        /* To a probe 503 is the truth about this server; it is asked anew anyway. */
        if (!why && reply->retry_after < 0 && u->question.kind != CASE_HEALTH)
            why = "a refusal without Retry-After";
        report_span(&c->report, SPAN_REFUSAL, took);
        end_question(u, why ? OUTCOME_WRONG : OUTCOME_REFUSED, why);
        return;
    }
    const char *verdict = answer_check(&u->answer, reply, c->learning);
    if (!why) why = verdict;
    /* All that were idle are asked at once in the end; that says nothing about a probe's time. */
    if (!why && !u->holds)
        report_span(&c->report, u->question.subject ? SPAN_WHOLE : SPAN_QUICK, took);
    if (!reply->stream && u->question.subject && u->answer.n_generated > 0)
        report_tokens(&c->report, u->key, u->answer.n_generated);
    if (c->pace > 0 && !why) report_lateness(u);
    if (reply->close) drop_socket(u);
    end_question(u, why ? OUTCOME_WRONG : OUTCOME_OK, why);
}

/* -- Reading ------------------------------------------------------------------------------- */

static void keep_gap(struct user *u, int64_t ns) {
    report_span(&u->crowd->report, SPAN_GAP, ns);
    if (!u->crowd->report.raw) return;
    if (u->n_gaps == u->gaps_size) {
        int size = u->gaps_size ? 2 * u->gaps_size : 64;
        int32_t *gaps = realloc(u->gaps, (size_t)size * sizeof *gaps);
        if (!gaps) return;
        u->gaps = gaps;
        u->gaps_size = size;
    }
    u->gaps[u->n_gaps++] = (int32_t)(ns / 1000);
}

static void keep_due(struct user *u, int64_t now) {
    if (u->n_due == u->due_size) {
        int64_t size = u->due_size ? 2 * u->due_size : 64;
        int64_t *due = realloc(u->due, (size_t)size * sizeof *due);
        if (!due) return;
        u->due = due;
        u->due_size = size;
    }
    u->due[u->n_due] = now - (int64_t)((double)u->n_due * 1e9 / u->crowd->pace);
    u->n_due++;
}

static void on_event(void *arg, const char *data, size_t n) {
    struct user *u = arg;
    if (!answer_event(&u->answer, data, n)) return;
    int64_t now = (int64_t)uv_hrtime();
    report_tokens(&u->crowd->report, u->key, 1);
    if (!u->first_ns) {
        report_span(&u->crowd->report, SPAN_FIRST, (u->first_ns = now) - u->since_ns);
    } else {
        keep_gap(u, now - u->last_ns);
        /* The first token comes as soon as it can, the timetable begins with the second. */
        if (u->crowd->pace > 0) keep_due(u, now);
    }
    u->last_ns = now;
}

static void on_body(void *arg, const char *bytes, size_t n) {
    struct user *u = arg;
    if (!u->reply.stream)
        answer_body(&u->answer, bytes, n);
    else if (events_feed(&u->events, bytes, n) < 0)
        snprintf(u->answer.wrong, sizeof u->answer.wrong, "an event that is too large");
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *buf) {
    const struct user *u = handle->data;
    (void)wanted;
    *buf = uv_buf_init(read_buffer,
                       u->question.kind == CASE_SLOW && u->busy ? 512 : sizeof read_buffer);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct user *u = stream->data;
    size_t used = 0;
    if (n == 0) return;
    if (n < 0) {
        if (u->busy) {
            lose(u, n == UV_EOF ? "the server closed the connection" : uv_strerror((int)n));
        } else {
            if (u->holds) u->crowd->report.n_dropped++;
            drop_socket(u);
        }
        return;
    }
    if (!u->busy) { /* bytes that nobody asked for, as a 408 before a close */
        drop_socket(u);
        return;
    }
    u->n_bytes += (size_t)n;
    int r = reply_feed(&u->reply, buf->base, (size_t)n, &used);
    if (r < 0) {
        end_question(u, OUTCOME_WRONG, "the answer is no HTTP");
    } else if (r == 1) {
        if (used < (size_t)n)
            end_question(u, OUTCOME_WRONG, "bytes behind the answer's end");
        else
            take_answer(u);
    } else if (u->cancel_at && u->answer.n_events >= u->cancel_at) {
        give_up(u);
    } else if (u->question.kind == CASE_SLOW) {
        uv_read_stop(stream);
        wait_for(u, JOB_READ_ON, 1 + crowd_random(u->crowd) % 10);
    }
}

/* -- The timer ----------------------------------------------------------------------------- */

static void on_timer(uv_timer_t *timer) {
    struct user *u = timer->data;
    enum user_job job = u->job;
    u->job = JOB_NONE;
    if (job == JOB_RECONNECT)
        open_socket(u);
    else if (job == JOB_CANCEL && u->busy)
        give_up(u);
    else if (job == JOB_READ_ON && u->connected)
        uv_read_start((uv_stream_t *)&u->tcp, on_alloc, on_read);
}

static void wait_for(struct user *u, enum user_job job, uint64_t ms) {
    u->job = job;
    uv_timer_start(&u->timer, on_timer, ms, 0);
}

/* -- Asking -------------------------------------------------------------------------------- */

static void on_written(uv_write_t *write, int status) {
    struct user *u = write->data;
    /* Reading will tell, too, but not when it is stopped. */
    if (status < 0 && status != UV_ECANCELED && u->busy && !u->closing)
        lose(u, uv_strerror(status));
}

/* Chooses the moment: before an answer begins, in its midst, or when all of it lies unread. */
static void plan_cancel(struct user *u) {
    uint64_t random = crowd_random(u->crowd);
    const struct subject *s = u->question.subject;
    u->cancel_at = 0;
    if (random % 4 == 0) {
        uv_read_stop((uv_stream_t *)&u->tcp);
        wait_for(u, JOB_CANCEL, UNREAD_MS);
    } else if (random % 4 == 1 || u->question.shape != CASE_STREAM) {
        wait_for(u, JOB_CANCEL, (random >> 8) % EARLY_MS);
    } else {
        u->cancel_at = 1 + (int)((random >> 8) % (uint64_t)s->max_tokens);
    }
}

static void send_question(struct user *u) {
    reply_reset(&u->reply);
    events_reset(&u->events);
    answer_begin(&u->answer, &u->question, u->crowd->strict);
    u->n_bytes = 0;
    u->first_ns = u->last_ns = 0;
    u->n_due = u->n_gaps = 0;
    u->cancel_at = 0;
    u->given_up = false;
    uv_buf_t buf = uv_buf_init(u->question.bytes, (unsigned)u->question.n);
    int n = uv_try_write((uv_stream_t *)&u->tcp, &buf, 1);
    if (n < 0 && n != UV_EAGAIN) {
        lose(u, uv_strerror(n));
        return;
    }
    if (n < 0) n = 0;
    if ((size_t)n < u->question.n) {
        buf = uv_buf_init(u->question.bytes + n, (unsigned)u->question.n - (unsigned)n);
        u->write.data = u;
        uv_write(&u->write, (uv_stream_t *)&u->tcp, &buf, 1, on_written);
    }
    if (u->question.kind == CASE_CANCEL) plan_cancel(u);
}

void user_ask(struct user *u, enum case_kind kind, uint64_t random, int64_t since_ns) {
    struct crowd *c = u->crowd;
    char id[40];
    snprintf(id, sizeof id, "load-%" PRIx64 "-%" PRIu64, c->random & 0xffff, ++c->serial);
    const char *key = u->key >= 0 && c->n_keys ? c->keys[u->key] : NULL;
    u->since_ns = since_ns;
    u->tries = 0;
    u->busy = true;
    if (cases_ask(&c->cases, &u->question, kind, random, id, key) < 0)
        end_question(u, OUTCOME_LOST, "out of memory for the question");
    else if (u->connected)
        send_question(u);
    else if (!u->open)
        open_socket(u);
}

/* -- The socket ---------------------------------------------------------------------------- */

static void on_closed(uv_handle_t *handle) {
    struct user *u = handle->data;
    u->open = u->closing = false;
    if (u->closed) return;
    if (u->busy)
        wait_for(u, JOB_RECONNECT, u->tries > 1 ? RECONNECT_MS : 0);
    else
        u->crowd->idle(u);
}

static void drop_socket(struct user *u) {
    if (!u->open || u->closing) return;
    u->closing = true;
    u->connected = false;
    /* Half of those who give up leave with a reset. */
    if (u->given_up && crowd_random(u->crowd) % 2)
        uv_tcp_close_reset(&u->tcp, on_closed);
    else
        uv_close((uv_handle_t *)&u->tcp, on_closed);
}

static void on_connected(uv_connect_t *connect, int status) {
    struct user *u = connect->data;
    if (u->closing || u->closed) return;
    if (status < 0) {
        if (u->busy)
            lose(u, uv_strerror(status));
        else
            drop_socket(u);
        return;
    }
    u->connected = true;
    uv_tcp_nodelay(&u->tcp, 1);
    uv_read_start((uv_stream_t *)&u->tcp, on_alloc, on_read);
    if (u->busy)
        send_question(u);
    else
        u->crowd->idle(u);
}

/* A port names a connection only together with its address, and an address has 28,000. */
static int bind_source(struct user *u) {
    struct sockaddr_in from = {.sin_family = AF_INET};
    if (u->crowd->n_sources < 2) return 0;
    unsigned host = 1 + (unsigned)(u->crowd->serial % (unsigned)u->crowd->n_sources);
    from.sin_addr.s_addr = htonl(0x7f000000u + host);
    return uv_tcp_bind(&u->tcp, (const struct sockaddr *)&from, 0);
}

static void open_socket(struct user *u) {
    u->open = true;
    u->n_bytes = 0;
    u->given_up = false;
    uv_tcp_init(u->crowd->loop, &u->tcp);
    u->tcp.data = u->connect.data = u;
    int r = bind_source(u);
    if (r == 0)
        r = uv_tcp_connect(&u->connect, &u->tcp, (const struct sockaddr *)&u->crowd->to,
                           on_connected);
    if (r < 0) {
        if (u->busy)
            lose(u, uv_strerror(r));
        else
            drop_socket(u);
    }
}

void user_connect(struct user *u) {
    if (!u->open) open_socket(u);
}

void user_check_time(struct user *u, int64_t now_ns) {
    if (u->busy && !u->closing && now_ns - u->since_ns > u->crowd->timeout_ns)
        end_question(u, OUTCOME_LOST, "no answer in time");
}

int user_init(struct user *u, struct crowd *crowd, int index) {
    memset(u, 0, sizeof *u);
    u->crowd = crowd;
    u->index = index;
    u->key = crowd->n_keys ? index % crowd->n_keys : -1;
    u->reply.body = on_body;
    u->events.event = on_event;
    u->reply.arg = u->events.arg = u;
    u->timer.data = u;
    return uv_timer_init(crowd->loop, &u->timer);
}

void user_close(struct user *u) {
    u->closed = true;
    uv_close((uv_handle_t *)&u->timer, NULL);
    drop_socket(u);
}

void user_free(struct user *u) {
    events_deinit(&u->events);
    answer_deinit(&u->answer);
    free(u->question.bytes);
    free(u->due);
    free(u->gaps);
}
