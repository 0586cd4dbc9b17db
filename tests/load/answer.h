/* answer.h - reads one answer's JSON or events and holds it against its question.
 *
 * Owns      the text it collects, until answer_deinit().
 * Borrows   the question from answer_begin() to answer_check().
 * Thread    one.
 * Fails     with a sentence that says what is wrong with the answer.
 * Cost      a scan of the bytes for the few members that matter; with strict also a parse of
 *           every event by jansson.
 *
 * Scanning is safe: inside a JSON string a quote is escaped, so a member's name in quotes cannot
 * be found in a text. */
#ifndef TESTS_LOAD_ANSWER_H
#define TESTS_LOAD_ANSWER_H

#include <stdbool.h>
#include <stddef.h>

#include "tests/load/cases.h"

struct reply;

struct answer {
    const struct question *question;
    bool strict;
    char *text; /* n bytes of the choice's text */
    size_t n, size;
    char *body; /* n_body bytes of an answer in one piece */
    size_t n_body, body_size;
    char id[64]; /* of the stream: all events have the same */
    char finish[16];
    int n_prompt, n_generated, n_events; /* events with text; tokens -1 = not told */
    bool done, failed;
    char wrong[160]; /* the first thing that is; "" = nothing */
};

void answer_begin(struct answer *a, const struct question *q, bool strict);
void answer_deinit(struct answer *a);

/* One event of a stream; true when it brought text. */
bool answer_event(struct answer *a, const char *data, size_t n);
void answer_body(struct answer *a, const char *bytes, size_t n);

/* The answer is complete: NULL, or what is wrong. Learns it when nothing is known yet. */
const char *answer_check(struct answer *a, const struct reply *reply, bool learn);

/* It was given up: NULL, or what is wrong with what had come until then. */
const char *answer_check_part(struct answer *a);

#endif
