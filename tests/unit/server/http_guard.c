#include "server/http_guard.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GET  "GET / HTTP/1.1\r\n"
#define POST "POST / HTTP/1.1\r\nHost: x\r\n"

struct message {
    const char *bytes;
    int status; /* 0 = good */
    const char *says;
};

static const struct message messages[] = {
    {GET "Host: x\r\n\r\n", 0, NULL},
    {"GET / HTTP/1.0\r\n\r\n", 0, NULL},
    {"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 0, NULL},
    {"OPTIONS * HTTP/1.1\r\nhOsT:\tx \t\r\nA:\r\nB: \xc3\xa9 \"(,)\r\n\r\n", 0, NULL},
    {"GET http://x/y?a=%00 HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n", 0, NULL},
    {POST "Content-Length: 3\r\n\r\nabc" GET "Host: y\r\n\r\n", 0, NULL},
    {POST "Content-Length:  0003 \r\n\r\n\r\n\0", 0, NULL},
    {POST
     "Transfer-Encoding: Chunked \r\n\r\n3;a=b\r\nabc\r\n0a\r\n0123456789\r\n0\r\nX: y\r\n\r\n" GET
     "Host: y\r\n\r\n",
     0, NULL},
    {POST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400, "Content-Length and"},
    {POST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "Content-Length and"},
    {POST "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "more than one Content-Length"},
    {POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400, "more than one Content-Length"},
    {POST "Content-Length: 5, 5\r\n\r\n", 400, "Content-Length is not a number"},
    {POST "Content-Length: 5 5\r\n\r\n", 400, "Content-Length is not a number"},
    {POST "Content-Length: +5\r\n\r\n", 400, "Content-Length is not a number"},
    {POST "Content-Length: 0x5\r\n\r\n", 400, "Content-Length is not a number"},
    {POST "Content-Length: -1\r\n\r\n", 400, "Content-Length is not a number"},
    {POST "Content-Length:\r\n\r\n", 400, "empty Content-Length"},
    {POST "Content-Length: 99999999999999999999\r\n\r\n", 400, "out of range"},
    {POST "Transfer-Encoding: chunked, identity\r\n\r\n", 400, "the only Transfer-Encoding"},
    {POST "Transfer-Encoding: identity, chunked\r\n\r\n", 400, "the only Transfer-Encoding"},
    {POST "Transfer-Encoding: xchunked\r\n\r\n", 400, "the only Transfer-Encoding"},
    {POST "Transfer-Encoding: chunkedx\r\n\r\n", 400, "the only Transfer-Encoding"},
    {POST "Transfer-Encoding:\r\n\r\n", 400, "the only Transfer-Encoding"},
    {POST "Transfer-Encoding: \x0b"
          "chunked\r\n\r\n",
     400, "control character"},
    {POST "Transfer-Encoding : chunked\r\n\r\n", 400, "a header's name"},
    {POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
     "more than one Transfer-Encoding"},
    {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "HTTP/1.0 has no"},
    {GET "\r\n", 400, "no Host"},
    {GET "Host: x\r\nHost: x\r\n\r\n", 400, "more than one Host"},
    {GET "Host: x\r\nA: b\r\n c: d\r\n\r\n", 400, "folded"},
    {GET "Host: x\r\nA: b\n\r\n", 400, "control character"},
    {GET "Host: x\r\nA: b\rc\r\n\r\n", 400, "without a line feed"},
    {GET "Host: x\r\nA\r\n\r\n", 400, "a header's name"},
    {GET "Host: x\r\n: b\r\n\r\n", 400, "a header's name"},
    {"GET / HTTP/1.1\nHost: x\n\n", 400, "does not end after the version"},
    {"GET /\r\n\r\n", 400, "no version"},
    {"GET  / HTTP/1.1\r\n\r\n", 400, "percent-encoded"},
    {"GET / x HTTP/1.1\r\n\r\n", 400, "a version"},
    {"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", 400, "percent-encoded"},
    {" GET / HTTP/1.1\r\n\r\n", 400, "a method"},
    {"{}", 400, "a method"},
    {"\x16\x03\x01\x02", 400, "does not speak TLS"},
    {"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGH / HTTP/1.1\r\n", 400, "the method is too long"},
    {"GET / HTTP/2.0\r\n\r\n", 505, "the version is not"},
    {"GET / HTTP/1.2\r\n\r\n", 505, "the version is not"},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "the version is not"},
    {POST "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "a chunk has no size"},
    {POST "Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400, "a chunk has no size"},
    {POST "Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n", 400, "size is not a number"},
    {POST "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n", 400, "size is not a number"},
    {POST "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n", 400, "size is not a number"},
    {POST "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 400, "is not a number"},
    {POST "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400, "longer than its size"},
    {POST "Transfer-Encoding: chunked\r\n\r\n0\r\n\x01\r\n", 400, "a trailer"},
};

static size_t length_of(const struct message *m) { return strlen(m->bytes); }

static void expect(const struct message *m, const struct http_guard *g, const char *how) {
    if (!m->status) {
        cr_expect(!g->fault, "%s: %s: %s", how, m->bytes, g->fault);
        return;
    }
    cr_assert(g->fault, "%s: %s passes", how, m->bytes);
    cr_expect(strstr(g->fault, m->says), "%s: %s: %s", how, m->bytes, g->fault);
    cr_expect(api_error_status(g->kind) == m->status, "%s: %s: %d", how, m->bytes, (int)g->kind);
}

Test(http_guard, verdict_is_the_same_however_the_bytes_are_split) {
    for (size_t i = 0; i < sizeof messages / sizeof *messages; i++) {
        const struct message *m = &messages[i];
        size_t n = length_of(m);
        struct http_guard whole = {0}, bytes = {0};
        http_guard_feed(&whole, m->bytes, n);
        expect(m, &whole, "whole");
        for (size_t k = 0; k < n; k++) http_guard_feed(&bytes, m->bytes + k, 1);
        expect(m, &bytes, "byte by byte");
        for (size_t k = 1; k < n; k++) {
            struct http_guard g = {0};
            http_guard_feed(&g, m->bytes, k);
            http_guard_feed(&g, m->bytes + k, n - k);
            expect(m, &g, "in two");
        }
    }
}

/* What is before a faulty head may go on, and of a faulty body all up to the fault. */
Test(http_guard, good_bytes_before_a_fault_go_on) {
    static const char first[] = GET "Host: x\r\n\r\n";
    static const char second[] = "GET / HTTP/1.1\r\nHost : x\r\n\r\n";
    static const char chunked[] = POST "Transfer-Encoding: chunked\r\n\r\n2\r\nabX\r\n";
    char both[256];
    struct http_guard g = {0};
    int n = snprintf(both, sizeof both, "%s%s", first, second);
    cr_expect(http_guard_feed(&g, both, (size_t)n) == strlen(first));
    cr_expect(g.fault && http_guard_feed(&g, first, strlen(first)) == 0);

    g = (struct http_guard){0}; /* the second message began before this piece */
    cr_expect(http_guard_feed(&g, both, strlen(first) + 5) == strlen(first) + 5);
    cr_expect(http_guard_feed(&g, second + 5, strlen(second) - 5) == 0);

    g = (struct http_guard){0};
    cr_expect(http_guard_feed(&g, chunked, strlen(chunked)) == strlen(chunked) - 3);
}

Test(http_guard, parts_of_messages_are_known) {
    struct http_guard g = {0};
    cr_expect(http_guard_part(&g) == HTTP_GUARD_BETWEEN);
    http_guard_feed(&g, "P", 1);
    cr_expect(http_guard_part(&g) == HTTP_GUARD_HEAD);
    static const char rest[] = "OST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r";
    http_guard_feed(&g, rest, strlen(rest));
    cr_expect(http_guard_part(&g) == HTTP_GUARD_HEAD);
    http_guard_feed(&g, "\n2\r", 3);
    cr_expect(http_guard_part(&g) == HTTP_GUARD_BODY);
    http_guard_feed(&g, "\nab\r\n0\r\n\r", 9);
    cr_expect(http_guard_part(&g) == HTTP_GUARD_BODY);
    http_guard_feed(&g, "\n", 1);
    cr_expect(http_guard_part(&g) == HTTP_GUARD_BETWEEN && !g.fault);
}

static struct http_guard feed_many(const char *head, const char *piece, int n) {
    struct http_guard g = {0};
    http_guard_feed(&g, head, strlen(head));
    for (int i = 0; i < n; i++) http_guard_feed(&g, piece, strlen(piece));
    return g;
}

Test(http_guard, everything_has_a_limit) {
    struct http_guard g = feed_many("GET /", "a", 9000);
    cr_expect(g.fault && g.kind == API_ERROR_TARGET);
    g = feed_many(GET "A: ", "a", 17000);
    cr_expect(g.fault && g.kind == API_ERROR_HEADERS);
    g = feed_many(GET, "A: b\r\n", 101);
    cr_expect(g.fault && g.kind == API_ERROR_HEADERS);
    g = feed_many(GET, "A: b\r\n", 100);
    cr_expect(!g.fault);
    g = feed_many("", "\r\n", 20000);
    cr_expect(g.fault, "empty lines have no end");
    g = feed_many(POST "Transfer-Encoding: chunked\r\n\r\n", "0", 20);
    cr_expect(g.fault, "zeros before a size have no end");
    g = feed_many(POST "Transfer-Encoding: chunked\r\n\r\n0\r\n", "A: b\r\n", 4000);
    cr_expect(g.fault && g.kind == API_ERROR_HEADERS);
    g = feed_many(POST "Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", 100000);
    cr_expect(!g.fault, "%s", g.fault);
}

/* Any bytes at all: it ends in a verdict, and never hands on more than it got. */
Test(http_guard, noise_is_judged) {
    static const char alphabet[] = "GET / HTTP/1.1\r\n:0aHostContent-LengthTransfer-Encoding \t;";
    srand(7);
    for (int round = 0; round < 20000; round++) {
        char bytes[64];
        struct http_guard g = {0};
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = round % 2 ? (char)rand() : alphabet[(size_t)rand() % (sizeof alphabet - 1)];
        size_t n = http_guard_feed(&g, bytes, sizeof bytes);
        cr_assert(n <= sizeof bytes && (g.fault || n == sizeof bytes));
    }
}
