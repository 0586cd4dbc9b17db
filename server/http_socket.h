/* http_socket.h - opens the listening socket and tunes accepted ones.
 *
 * Owns      nothing; descriptors are the caller's.
 * Borrows   the host's name during the call.
 * Thread    any.
 * Fails     listening with a negative errno and the address in the text; tuning never.
 * Cost      one name look-up at start.
 *
 * Port 0 takes a free port, which ret_port tells. */
#ifndef SERVER_HTTP_SOCKET_H
#define SERVER_HTTP_SOCKET_H

#include <stdint.h>

struct error;

int http_socket_listen(int *ret_fd, int *ret_port, const char *host, int port, struct error *err);
void http_socket_close(int fd);

struct http_unix { /* a socket's file, to be removed by who made it */
    char path[108];
    uint64_t device, inode; /* 0 = there is none */
};

/* Listens on a file. What a server that is gone has left there is replaced; what another server
 * listens on, or what is no socket, is not. */
int http_socket_listen_unix(int *ret_fd, struct http_unix *ret, const char *path, int mode,
                            struct error *err);
void http_socket_remove_unix(const struct http_unix *file);

/* Answers leave at once, and peers that vanish without a word are noticed. */
void http_socket_tune(int fd);

/* Raises the limit of open descriptors to at least n where that is allowed; returns the limit. */
unsigned long http_socket_raise_limit(unsigned long n);

#endif
