/* http_tls.h - reads a certificate and its key, and checks that they fit.
 *
 * Owns      the files' bytes until http_tls_close().
 * Borrows   the names during the call.
 * Thread    one.
 * Fails     -ENOENT and others of files, -EINVAL: GnuTLS does not take them; the text says which.
 * Cost      two files of at most 1 MiB.
 *
 * libmicrohttpd fails without a reason when it does not like a key; so it is asked only after
 * this. */
#ifndef SERVER_HTTP_TLS_H
#define SERVER_HTTP_TLS_H

struct error;

struct http_tls { /* PEM, with a NUL at the end; NULL: no TLS */
    char *certificate, *key;
};

/* TLS 1.2 and 1.3, as GnuTLS writes it. */
#define HTTP_TLS_PRIORITIES "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

/* Both names or neither. */
int http_tls_open(struct http_tls *ret, const char *certificate, const char *key,
                  struct error *err);
void http_tls_close(struct http_tls *tls); /* clears the key's memory */

#endif
