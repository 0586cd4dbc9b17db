/* access_log.h - one line for each answered request.
 *
 * Owns      nothing.
 * Borrows   the record during the call.
 * Thread    any; pure.
 * Fails     as text.h: the text is marked.
 * Cost      one line of some 400 bytes.
 *
 * As text a line is for people, as JSON an object with the same facts; those that are not known
 * (times below zero, names that are NULL or empty) are left out of both. */
#ifndef SERVER_ACCESS_LOG_H
#define SERVER_ACCESS_LOG_H

#include <stdbool.h>
#include <stdint.h>

struct text;

struct access_record {
    const char *request_id, *key, *client, *method, *path, *finish;
    int status;
    bool left; /* the client did not wait for the end */
    int64_t queue_ns, first_ns, total_ns;
    int n_prompt, n_cached, n_generated;
};

void access_log_text(struct text *out, const struct access_record *record);

/* The members of an object, without its braces. */
void access_log_json(struct text *out, const struct access_record *record);

#endif
