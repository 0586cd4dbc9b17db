/* user.h - one connection that asks one question at a time and judges the answer.
 *
 * Owns      its socket, timer and buffers, from user_init() until its `closed` is true.
 * Borrows   the crowd for as long.
 * Thread    the loop's.
 * Fails     never by itself: what goes wrong is an outcome in the report.
 * Cost      about 6 KiB and a descriptor.
 *
 * After user_ask() the crowd's idle() is called exactly once, when the outcome is counted; the
 * user may be asked anew from there. A patient crowd, which knows that its server restarts, asks a
 * question once more when its connection ended with no byte of an answer, as HTTP clients do;
 * in any other that answer is lost. */
#ifndef TESTS_LOAD_USER_H
#define TESTS_LOAD_USER_H

#include <netinet/in.h>
#include <uv.h>

#include "tests/load/answer.h"
#include "tests/load/events.h"
#include "tests/load/reply.h"
#include "tests/load/report.h"

struct user;

struct crowd { /* what all users share */
    uv_loop_t *loop;
    struct sockaddr_in to;
    struct cases cases;
    struct report report;
    void (*idle)(struct user *u);
    char **keys; /* (n_keys) */
    int n_keys;
    int n_sources;                       /* loopback addresses to connect from */
    bool strict, patient, learning, ids; /* ids: the server returns X-Request-Id */
    int64_t timeout_ns;
    double pace; /* tokens a second that a stream should have, 0 = unknown */
    uint64_t random, serial;
};

enum user_job { JOB_NONE, JOB_RECONNECT, JOB_CANCEL, JOB_READ_ON };

struct user {
    struct crowd *crowd;
    int index, key; /* key -1: none */
    void *owner;    /* the crowd's driver's */
    uv_tcp_t tcp;
    uv_timer_t timer;
    uv_connect_t connect;
    uv_write_t write;
    enum user_job job;
    bool open, connected, closing, closed, busy, holds;
    bool asking, resting; /* the driver's */
    int tries;
    struct question question;
    struct reply reply;
    struct events events;
    struct answer answer;
    int64_t since_ns, first_ns, last_ns;
    size_t n_bytes; /* of the answer so far */
    int cancel_at;  /* events with text, 0 = no */
    bool given_up;
    int64_t *due, n_due, due_size; /* with a pace: arrivals, less the timetable */
    int32_t *gaps;                 /* (n_gaps) microseconds, for the raw file */
    int n_gaps, gaps_size;
};

int user_init(struct user *u, struct crowd *crowd, int index);

/* since_ns: when the question should have been asked. */
void user_ask(struct user *u, enum case_kind kind, uint64_t random, int64_t since_ns);
void user_connect(struct user *u); /* only; idle() follows */
void user_check_time(struct user *u, int64_t now_ns);
void user_close(struct user *u); /* for good */
void user_free(struct user *u);  /* after it is closed */

uint64_t crowd_random(struct crowd *c);

#endif
