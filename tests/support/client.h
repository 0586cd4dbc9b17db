/* client.h - starts a server with the fake engine, and speaks raw HTTP to it.
 *
 * Owns      the server's process until client_stop(), sockets and what they received.
 * Borrows   its arguments during the call.
 * Thread    one.
 * Fails     by failing the test; a server that is silent for 20 s fails it, too.
 * Cost      a process and a socket.
 *
 * Nothing here knows HTTP well: tests say what goes over the wire, byte by byte. What client_post()
 * and client_get() send is also written to the file that GPTQT_CLIENT_RECORD names. */
#ifndef TESTS_SUPPORT_CLIENT_H
#define TESTS_SUPPORT_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct client_server {
    pid_t pid;
    int port;
};

struct client { /* a connection */
    int fd;
    char *data; /* n bytes that were received and not taken, NUL after */
    size_t n, size;
    bool eof;
};

struct client_reply {
    int status;
    char *head, *body; /* of one answer; the body without chunks */
    size_t n;
};

/* The program named by GPTQT_FAKE_SERVE with these flags (NULL ends them) and port 0. */
struct client_server client_start(const char *const *flags);

/* The same on a free port, without waiting for the server to be ready: returns once its port
 * takes connections. */
struct client_server client_start_early(const char *const *flags);

/* Waits for the server's end; returns its exit status, or 128 + signal. */
int client_wait(struct client_server s);

/* SIGTERM, then client_wait(); fails the test when that is not 0. */
void client_stop(struct client_server s);

/* Runs the program to its end with exactly these flags; text gets its standard error. */
int client_run(const char *const *flags, char *text, size_t size);

struct client client_open(struct client_server s);
struct client client_open_small(struct client_server s); /* with a receive buffer of 4 KiB */
void client_close(struct client *c);

void client_send(struct client *c, const char *bytes);
void client_post(struct client *c, const char *path, const char *body);
void client_get(struct client *c, const char *path);

/* Receives until the needle is there; returns where, or NULL at the end of the stream. */
const char *client_expect(struct client *c, const char *needle);

/* The next answer. */
struct client_reply client_reply(struct client *c);
void client_reply_free(struct client_reply *r);

/* One request on a connection of its own. */
struct client_reply client_call(struct client_server s, const char *path, const char *body);

/* The same; the answer's body is JSON, and must have this status. */
json_t *client_json(struct client_server s, const char *path, const char *body, int status);

/* The member at a path like "choices.0.text". */
const json_t *client_at(const json_t *root, const char *path);
const char *client_string(const json_t *root, const char *path); /* "" when absent */

/* Asks /metrics until the number after name reaches value; fails after 20 s. */
void client_until(struct client_server s, const char *name, int value);

#endif
