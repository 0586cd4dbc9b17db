#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <math.h>

#include "tests/load/options.h"
#include "tests/load/user.h"

/* DESIGN. The run has phases: idle connections are opened, then the right answers are learned one
 * by one, then the load runs, then it runs out (nothing is asked any more, what is under way
 * ends), then idle connections are asked once, then all is closed. advance() goes from one to the
 * next. In a closed loop a user that becomes idle asks at once. In an open loop questions arrive
 * at moments that do not depend on answers; one that finds no idle user waits, and its time
 * counts from its arrival. */

enum phase { OPENING, LEARNING, RUNNING, ENDING, HOLDING, OVER };

enum { TICK_MS = 20, OPENERS = 256, SPARE_DESCRIPTORS = 64, MAX_BACKLOG = 1 << 20 };

struct driver {
    struct options options;
    struct crowd crowd;
    uv_loop_t loop;
    uv_timer_t tick, arrivals;
    enum phase phase;
    struct user *users, *holders; /* (n_users), (options.idle) */
    int n_users, n_begun;         /* users that take part already */
    int next_holder, n_opening;   /* of the phase: the next one to be opened or asked */
    int learned;                  /* 2 * subject + chat */
    long asked;
    int n_busy;
    int64_t start_ns;
    bool warm;
    struct user **rest; /* (n_rest) idle users of an open loop */
    int n_rest;
    int64_t *backlog; /* ring of arrival times */
    unsigned backlog_head, backlog_tail;
    int64_t next_arrival_ns;
    bool interrupted;
};

static void advance(struct driver *d);

static double since_start(const struct driver *d) {
    return (double)((int64_t)uv_hrtime() - d->start_ns) / 1e9;
}

static bool may_ask(const struct driver *d) {
    return d->phase == RUNNING && (!d->options.requests || d->asked < d->options.requests);
}

static void ask(struct driver *d, struct user *u, int64_t since_ns) {
    uint64_t random = crowd_random(&d->crowd);
    d->asked++;
    d->n_busy++;
    user_ask(u, cases_pick(&d->crowd.cases, random >> 20), crowd_random(&d->crowd), since_ns);
}

/* -- Idle connections ---------------------------------------------------------------------- */

static void open_holders(struct driver *d) {
    while (d->n_opening < OPENERS && d->next_holder < d->options.idle) {
        d->n_opening++;
        user_connect(&d->holders[d->next_holder++]);
    }
    if (d->n_opening == 0 && d->phase == OPENING) advance(d);
}

static void ask_holders(struct driver *d) {
    while (d->n_opening < OPENERS && d->next_holder < d->options.idle) {
        struct user *u = &d->holders[d->next_holder++];
        if (!u->connected) continue;
        d->n_opening++;
        user_ask(u, CASE_HEALTH, 0, (int64_t)uv_hrtime());
    }
    if (d->n_opening == 0 && d->phase == HOLDING) advance(d);
}

static void on_holder_idle(struct driver *d, struct user *u) {
    if (d->phase == OPENING) {
        d->n_opening--;
        u->holds = u->connected;
        if (!u->connected) d->crowd.report.n_dropped++;
        open_holders(d);
    } else if (d->phase == HOLDING) {
        d->n_opening--;
        if (u->connected) d->crowd.report.n_held++;
        ask_holders(d);
    }
}

/* -- Learning ------------------------------------------------------------------------------ */

static bool uses(const struct cases *c, bool chat) {
    const int *w = c->weights;
    return chat ? w[CASE_CHAT] + w[CASE_CHAT_STREAM] > 0
                : w[CASE_COMPLETION] + w[CASE_STREAM] + w[CASE_SLOW] + w[CASE_CANCEL] > 0;
}

static void learn_next(struct driver *d) {
    const struct cases *c = &d->crowd.cases;
    for (; d->learned < 2 * c->n; d->learned++) {
        int subject = d->learned / 2;
        bool chat = d->learned % 2;
        if (!uses(c, chat) || c->subjects[subject].known[chat].set) continue;
        if (report_total(&d->crowd.report, OUTCOME_LOST) +
                report_total(&d->crowd.report, OUTCOME_WRONG) >
            8)
            break; /* it will not get better */
        user_ask(&d->users[0], chat ? CASE_CHAT : CASE_COMPLETION, (uint64_t)subject,
                 (int64_t)uv_hrtime());
        return;
    }
    advance(d);
}

static void on_learned(struct driver *d) {
    const struct known *k = &d->crowd.cases.subjects[d->learned / 2].known[d->learned % 2];
    if (k->set)
        d->learned++;
    else if (report_total(&d->crowd.report, OUTCOME_REFUSED) > 1000)
        d->learned = 2 * d->crowd.cases.n;
    learn_next(d);
}

/* -- The load ------------------------------------------------------------------------------ */

static void on_idle(struct user *u) {
    struct driver *d = u->owner;
    if (u >= d->holders && u < d->holders + d->options.idle) {
        on_holder_idle(d, u);
        return;
    }
    if (d->phase == LEARNING) {
        on_learned(d);
        return;
    }
    if (u->asking) d->n_busy--;
    u->asking = false;
    if (d->phase == ENDING && d->n_busy == 0) {
        advance(d);
    } else if (d->options.rate > 0) {
        if (d->backlog_head != d->backlog_tail && may_ask(d)) {
            u->asking = true;
            ask(d, u, d->backlog[d->backlog_head++ % MAX_BACKLOG]);
        } else if (!u->resting) {
            u->resting = true;
            d->rest[d->n_rest++] = u;
        }
    } else if (may_ask(d)) {
        u->asking = true;
        ask(d, u, (int64_t)uv_hrtime());
    }
}

static void begin_users(struct driver *d) {
    double share = d->options.ramp > 0 ? since_start(d) / d->options.ramp : 1;
    int wanted = share < 1 ? (int)(share * d->n_users) : d->n_users;
    while (d->n_begun < wanted) on_idle(&d->users[d->n_begun++]);
}

static void arrive(struct driver *d) {
    int64_t now = (int64_t)uv_hrtime();
    while (d->next_arrival_ns <= now && may_ask(d)) {
        double u = (double)(crowd_random(&d->crowd) >> 11) * 0x1p-53;
        if (d->n_rest > 0) {
            struct user *user = d->rest[--d->n_rest];
            user->resting = false;
            user->asking = true;
            ask(d, user, (int64_t)uv_hrtime());
        } else if (d->backlog_tail - d->backlog_head < MAX_BACKLOG) {
            d->backlog[d->backlog_tail++ % MAX_BACKLOG] = d->next_arrival_ns;
        }
        d->next_arrival_ns += (int64_t)(-log(1 - u) * 1e9 / d->options.rate);
    }
}

/* Every millisecond: clients that began at the same moment would be served at the same ones. */
static void on_arrivals(uv_timer_t *timer) {
    struct driver *d = timer->data;
    if (d->options.rate > 0)
        arrive(d);
    else if (d->phase == RUNNING)
        begin_users(d);
}

static void on_tick(uv_timer_t *timer) {
    struct driver *d = timer->data;
    int64_t now = (int64_t)uv_hrtime();
    for (int i = 0; i < d->n_users; i++) user_check_time(&d->users[i], now);
    for (int i = 0; i < d->options.idle; i++) user_check_time(&d->holders[i], now);
    if (d->phase != RUNNING) return;
    begin_users(d);
    if (!d->warm && since_start(d) >= d->options.warmup) {
        d->warm = true;
        report_restart(&d->crowd.report, now);
    }
    bool all_asked = d->options.requests && d->asked >= d->options.requests;
    if (d->interrupted || all_asked || since_start(d) >= d->options.warmup + d->options.seconds)
        advance(d);
}

/* -- Phases -------------------------------------------------------------------------------- */

static void close_all(struct driver *d) {
    for (int i = 0; i < d->n_users; i++) user_close(&d->users[i]);
    for (int i = 0; i < d->options.idle; i++) user_close(&d->holders[i]);
    uv_close((uv_handle_t *)&d->tick, NULL);
    uv_close((uv_handle_t *)&d->arrivals, NULL);
}

static void begin_running(struct driver *d) {
    d->crowd.learning = d->options.expect == EXPECT_FIRST;
    d->start_ns = d->next_arrival_ns = (int64_t)uv_hrtime();
    d->crowd.report.since_ns = d->start_ns;
    /* What was learned serially is no part of the measurement. */
    report_restart(&d->crowd.report, d->start_ns);
    d->warm = d->options.warmup <= 0;
    begin_users(d);
    if (d->options.rate > 0 || d->options.ramp > 0) uv_timer_start(&d->arrivals, on_arrivals, 1, 1);
}

static void advance(struct driver *d) {
    switch (++d->phase) {
    case LEARNING:
        d->crowd.learning = true;
        if (d->options.expect == EXPECT_SERIAL)
            learn_next(d);
        else
            advance(d);
        break;
    case RUNNING:
        begin_running(d);
        break;
    case ENDING:
        d->crowd.report.until_ns = (int64_t)uv_hrtime();
        if (d->n_busy == 0) advance(d);
        break;
    case HOLDING:
        d->next_holder = 0;
        ask_holders(d);
        break;
    default:
        close_all(d);
    }
}

static struct driver *running; /* for the signal */

static void on_interrupt(int number) {
    (void)number;
    running->interrupted = true;
}

static void raise_descriptors(int wanted) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= (rlim_t)wanted) return;
    limit.rlim_cur = (rlim_t)wanted;
    if (limit.rlim_max < limit.rlim_cur) limit.rlim_max = limit.rlim_cur; /* as root it may */
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0) return;
    fprintf(stderr, "load: %d open files are needed and not allowed\n", wanted);
    exit(2);
}

static int open_driver(struct driver *d) {
    const struct options *o = &d->options;
    char why[128] = "out of memory";
    struct crowd *c = &d->crowd;
    raise_descriptors(o->clients + o->flood + o->idle + SPARE_DESCRIPTORS);
    uv_loop_init(&d->loop);
    c->loop = &d->loop;
    c->to = o->to;
    c->idle = on_idle;
    c->keys = o->keys;
    c->n_keys = o->n_keys;
    c->n_sources = o->sources;
    c->strict = o->strict;
    c->patient = o->patient;
    c->ids = o->ids;
    c->timeout_ns = (int64_t)(o->timeout * 1e9);
    c->pace = o->pace;
    c->random = o->seed;
    if (report_open(&c->report, o->raw) < 0) {
        fprintf(stderr, "load: %s: %s\n", o->raw, strerror(errno));
        return -1;
    }
    c->report.n_keys = o->n_keys < REPORT_KEYS ? o->n_keys : REPORT_KEYS;
    d->n_users = o->clients + o->flood;
    d->users = calloc((size_t)d->n_users, sizeof *d->users);
    d->holders = calloc((size_t)o->idle + 1, sizeof *d->holders);
    d->rest = calloc((size_t)d->n_users, sizeof(struct user *));
    d->backlog = calloc(MAX_BACKLOG, sizeof *d->backlog);
    if (cases_init(&c->cases, &o->cases, why, sizeof why) < 0 || !d->users || !d->holders ||
        !d->rest || !d->backlog) {
        fprintf(stderr, "load: %s\n", why);
        return -1;
    }
    for (int i = 0; i < d->n_users; i++) {
        user_init(&d->users[i], c, i);
        if (i >= o->clients && o->n_keys) d->users[i].key = 0;
        d->users[i].owner = d;
    }
    for (int i = 0; i < o->idle; i++) {
        user_init(&d->holders[i], c, i);
        d->holders[i].owner = d;
    }
    uv_timer_init(&d->loop, &d->tick);
    uv_timer_init(&d->loop, &d->arrivals);
    d->tick.data = d->arrivals.data = d;
    uv_timer_start(&d->tick, on_tick, TICK_MS, TICK_MS);
    return 0;
}

static void close_driver(struct driver *d) {
    for (int i = 0; d->users && i < d->n_users; i++) user_free(&d->users[i]);
    for (int i = 0; d->holders && i < d->options.idle; i++) user_free(&d->holders[i]);
    cases_deinit(&d->crowd.cases);
    report_close(&d->crowd.report);
    free(d->users);
    free(d->holders);
    free(d->rest);
    free(d->backlog);
    uv_loop_close(&d->loop);
}

int main(int argc, char **argv) {
    struct driver *d = running = calloc(1, sizeof *d);
    if (!d) return 2;
    options_read(&d->options, argc, argv);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    if (open_driver(d) < 0) return 2;
    open_holders(d);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    const struct report *r = &d->crowd.report;
    if (d->options.json)
        report_print_json(r, stdout);
    else
        report_print(r, stdout);
    bool bad = report_total(r, OUTCOME_LOST) || report_total(r, OUTCOME_WRONG) || r->n_dropped;
    close_driver(d);
    free(d);
    return bad;
}
