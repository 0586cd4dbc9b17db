/* cases.h - the requests that a load consists of, and what the right answer to each is.
 *
 * Owns      prompts, bodies and the known answers until cases_deinit().
 * Borrows   its arguments during the call.
 * Thread    one.
 * Fails     with -ENOMEM, or -EINVAL with a text for a mix that cannot be read.
 * Cost      a body for each subject and kind, made once; a request is two copies.
 *
 * A subject is a prompt with its max_tokens. Its answer is greedy, so it is the same whoever asks,
 * alone or in any batch, in one piece or as a stream: it is learned once, and held against every
 * later one. Echo cases carry the request's own id in their prompt, which must come back. */
#ifndef TESTS_LOAD_CASES_H
#define TESTS_LOAD_CASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum case_kind {
    CASE_HEALTH,
    CASE_COMPLETION,
    CASE_STREAM,
    CASE_CHAT,
    CASE_CHAT_STREAM,
    CASE_ECHO,   /* a completion with echo and a prompt of its own */
    CASE_SLOW,   /* a stream whose reader pauses */
    CASE_CANCEL, /* any of the above, given up at any time */
    CASE_BAD,    /* a request that must be refused */
    CASE_KINDS
};

struct known { /* the right answer */
    bool set;
    char *text; /* n bytes */
    size_t n;
    int n_prompt, n_generated;
    char finish[16];
};

struct subject {
    char *prompt;
    int max_tokens;
    struct known known[2]; /* of the completion and of the chat */
    char *bodies[CASE_KINDS];
};

struct cases {
    struct subject *subjects; /* (n) */
    int n;
    int weights[CASE_KINDS], total;
    const char *host, *model; /* model: NULL = the request names none */
};

struct cases_options {
    const char *mix; /* "stream=3,cancel=1" */
    const char *host, *model;
    int n_subjects, min_tokens, max_tokens, min_words, max_words;
    bool end_allowed; /* odd subjects end where the model wants to, too */
};

struct question {                  /* a request, ready to be sent */
    enum case_kind kind, shape;    /* shape: what CASE_CANCEL and CASE_SLOW look like on the wire */
    const struct subject *subject; /* NULL: health and bad requests */
    struct known *known;           /* NULL: nothing is known */
    int status;                    /* that the answer must have */
    char id[48];
    char *bytes; /* n, kept from question to question */
    size_t n, size;
};

int cases_init(struct cases *c, const struct cases_options *options, char *why, size_t why_size);
void cases_deinit(struct cases *c);

enum case_kind cases_pick(const struct cases *c, uint64_t random);
const char *cases_name(enum case_kind kind);

/* random chooses the subject; key: an API key or NULL. */
int cases_ask(const struct cases *c, struct question *q, enum case_kind kind, uint64_t random,
              const char *id, const char *key);

#endif
