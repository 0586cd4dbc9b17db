#undef _FORTIFY_SOURCE /* its recv() is inline, and ours is not */
#define _GNU_SOURCE    /* RTLD_NEXT */

#include "server/http_wire.h"

#include <dlfcn.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "server/loop.h"

enum {
    LINGER_BYTES = 4 << 20, /* that a refused client may still send */
    TABLE_STEP = 1024
};

static const int64_t LINGER_NS = 2 * INT64_C(1000000000);

static struct http_wire **table; /* (n_table) by descriptor */
static int n_table;

typedef ssize_t tls_receive(gnutls_session_t session, void *data, size_t n);

/* -- The table ----------------------------------------------------------------------------- */

static int grow(int fd) {
    int n = (fd / TABLE_STEP + 1) * TABLE_STEP;
    if (fd < n_table) return 0;
    struct http_wire **bigger = realloc(table, (size_t)n * sizeof *table);
    if (!bigger) return -ENOMEM;
    for (int i = n_table; i < n; i++) bigger[i] = NULL;
    table = bigger;
    n_table = n;
    return 0;
}

static struct http_wire *find(int fd) { return fd >= 0 && fd < n_table ? table[fd] : NULL; }

static void link_wire(struct http_wire *w) {
    if (w->linked) return;
    w->linked = true;
    w->prev = NULL;
    w->next = w->wires->unfinished;
    if (w->next) w->next->prev = w;
    w->wires->unfinished = w;
}

static void unlink_wire(struct http_wire *w) {
    if (!w->linked) return;
    w->linked = false;
    if (w->prev)
        w->prev->next = w->next;
    else
        w->wires->unfinished = w->next;
    if (w->next) w->next->prev = w->prev;
}

int http_wire_open(struct http_wire *w, struct http_wires *wires, int fd, void *session) {
    int r = grow(fd);
    if (r < 0) return r;
    w->wires = wires;
    w->fd = fd;
    w->session = session;
    table[fd] = w;
    return 0;
}

void http_wire_close(struct http_wire *w) {
    if (find(w->fd) != w) return;
    unlink_wire(w);
    table[w->fd] = NULL;
}

bool http_wire_is_faulty(const struct http_wire *w) { return w->guard.fault != NULL; }

/* -- Receiving ----------------------------------------------------------------------------- */

static tls_receive *tls_original(void) {
    static tls_receive *original;
    if (!original) *(void **)(&original) = dlsym(RTLD_NEXT, "gnutls_record_recv");
    return original;
}

static ssize_t receive(struct http_wire *w, void *buf, size_t n, int flags) {
    if (w->session) return tls_original()(w->session, buf, n);
    return recvfrom(w->fd, buf, n, flags, NULL, NULL);
}

void http_wire_send(struct http_wire *w, const char *bytes, size_t n) {
    /* The buffer of a socket that waits for a request is empty: a short answer fits. */
    if (w->session)
        (void)gnutls_record_send(w->session, bytes, n);
    else
        (void)send(w->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Throws away what comes; the end, when there is too much of it. */
static ssize_t drop(struct http_wire *w, int flags) {
    char scratch[4096];
    ssize_t got;
    while (w->n_dropped < LINGER_BYTES && (got = receive(w, scratch, sizeof scratch, flags)) != 0) {
        if (got < 0) return got;
        w->n_dropped += (size_t)got;
    }
    return 0;
}

static ssize_t refuse(struct http_wire *w, int flags) {
    w->refused = true;
    w->since_ns = loop_now_ns();
    link_wire(w);
    w->wires->refuse(w, w->guard.kind, w->guard.fault);
    if (w->session) (void)gnutls_bye(w->session, GNUTLS_SHUT_WR);
    shutdown(w->fd, SHUT_WR);
    return drop(w, flags);
}

/* Makes the library read once more, which it does when the socket says so. */
static void poke(struct http_wire *w) { shutdown(w->fd, SHUT_RD); }

/* A client that closed right behind the bytes that were read. libmicrohttpd takes a short read for
 * the last one there is, and no event would come any more. */
static bool has_left(const struct http_wire *w) {
    char byte;
    return !w->session && recvfrom(w->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT, NULL, NULL) == 0;
}

static void note_part(struct http_wire *w, enum http_guard_part before, uint64_t n_before) {
    enum http_guard_part part = http_guard_part(&w->guard);
    if (part == HTTP_GUARD_BETWEEN) {
        unlink_wire(w);
    } else if (part != before || w->guard.n_messages != n_before) {
        w->since_ns = loop_now_ns();
        link_wire(w);
    }
}

static ssize_t judge(struct http_wire *w, void *buf, size_t n, int flags) {
    if (w->refused) return drop(w, flags);
    if (w->guard.fault) return refuse(w, flags);
    ssize_t got = receive(w, buf, n, flags);
    if (got <= 0 || (flags & MSG_PEEK)) return got;
    enum http_guard_part before = http_guard_part(&w->guard);
    uint64_t n_before = w->guard.n_messages;
    size_t good = http_guard_feed(&w->guard, buf, (size_t)got);
    if (!w->guard.fault) {
        note_part(w, before, n_before);
        bool unfinished = http_guard_part(&w->guard) != HTTP_GUARD_BETWEEN;
        if (unfinished && (size_t)got < n && has_left(w)) poke(w);
        return got;
    }
    if (good == 0) return refuse(w, flags);
    /* What is before the faulty message is answered first. */
    link_wire(w);
    poke(w);
    return (ssize_t)good;
}

/* -- What libraries call --------------------------------------------------------------------- */

#define SEEN_BY_LIBRARIES __attribute__((visibility("default")))

SEEN_BY_LIBRARIES ssize_t recv(int fd, void *buf, size_t n, int flags) {
    struct http_wire *w = find(fd);
    if (!w || w->session) return recvfrom(fd, buf, n, flags, NULL, NULL);
    return judge(w, buf, n, flags);
}

SEEN_BY_LIBRARIES ssize_t gnutls_record_recv(gnutls_session_t session, void *data, size_t n) {
    struct http_wire *w = find(gnutls_transport_get_int(session));
    if (!w || w->session != session) return tls_original()(session, data, n);
    return judge(w, data, n, 0);
}

/* -- Time ---------------------------------------------------------------------------------- */

static void too_slow(struct http_wire *w, const char *text) {
    w->guard.kind = API_ERROR_SLOW;
    w->guard.fault = text;
    poke(w);
}

void http_wire_tick(struct http_wires *wires, int64_t now_ns) {
    for (struct http_wire *w = wires->unfinished; w; w = w->next) {
        int64_t age = now_ns - w->since_ns;
        enum http_guard_part part = http_guard_part(&w->guard);
        if (w->refused) {
            if (age > LINGER_NS) shutdown(w->fd, SHUT_RDWR);
        } else if (w->guard.fault) {
            continue;
        } else if (part == HTTP_GUARD_HEAD && wires->head_ns && age > wires->head_ns) {
            too_slow(w, "the request's head took too long to come");
        } else if (part == HTTP_GUARD_BODY && wires->body_ns && age > wires->body_ns) {
            too_slow(w, "the request's body took too long to come");
        }
    }
}
