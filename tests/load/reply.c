#include "tests/load/reply.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void reply_reset(struct reply *r) {
    r->status = 0;
    r->stream = r->close = r->chunked = false;
    r->retry_after = -1;
    r->id[0] = 0;
    r->state = REPLY_HEAD;
    r->left = 0;
    r->n_line = 0;
}

static void read_header(struct reply *r, const char *name, const char *value) {
    if (!strcasecmp(name, "content-length"))
        r->left = strtoull(value, NULL, 10);
    else if (!strcasecmp(name, "transfer-encoding"))
        r->chunked = !strcasecmp(value, "chunked");
    else if (!strcasecmp(name, "connection"))
        r->close = !strcasecmp(value, "close");
    else if (!strcasecmp(name, "content-type"))
        r->stream = !strncasecmp(value, "text/event-stream", 17);
    else if (!strcasecmp(name, "retry-after"))
        r->retry_after = atoi(value);
    else if (!strcasecmp(name, "x-request-id"))
        snprintf(r->id, sizeof r->id, "%s", value);
}

static int read_head(struct reply *r) {
    char *line = r->line, *end = strstr(line, "\r\n");
    if (sscanf(line, "HTTP/1.1 %3d", &r->status) != 1) return -EPROTO;
    for (line = end + 2; (end = strstr(line, "\r\n")) && end > line; line = end + 2) {
        *end = 0;
        char *colon = strchr(line, ':');
        if (!colon) return -EPROTO;
        *colon = 0;
        read_header(r, line, colon + 1 + strspn(colon + 1, " "));
    }
    r->n_line = 0;
    bool empty = r->status == 204 || r->status == 304 || (!r->chunked && r->left == 0);
    r->state = empty ? REPLY_COMPLETE : r->chunked ? REPLY_CHUNK_SIZE : REPLY_BODY;
    return 0;
}

/* Gathers bytes up to the mark into line; 1 when it is there. */
static int gather(struct reply *r, const char *mark, const char *bytes, size_t n,
                  size_t *ret_used) {
    size_t n_mark = strlen(mark), i = 0;
    while (i < n) {
        if (r->n_line == sizeof r->line - 1) return -EPROTO;
        r->line[r->n_line++] = bytes[i++];
        if (r->n_line >= n_mark && !memcmp(r->line + r->n_line - n_mark, mark, n_mark)) {
            r->line[r->n_line] = 0;
            *ret_used = i;
            return 1;
        }
    }
    *ret_used = i;
    return 0;
}

static int take_line(struct reply *r) {
    char *end;
    switch (r->state) {
    case REPLY_HEAD:
        return read_head(r);
    case REPLY_CHUNK_SIZE:
        r->left = strtoull(r->line, &end, 16);
        if (end == r->line) return -EPROTO;
        r->state = r->left ? REPLY_CHUNK : REPLY_TRAILER;
        break;
    case REPLY_CHUNK_END:
        if (r->n_line != 2) return -EPROTO;
        r->state = REPLY_CHUNK_SIZE;
        break;
    default: /* REPLY_TRAILER: an empty line ends it */
        if (r->n_line == 2) r->state = REPLY_COMPLETE;
    }
    r->n_line = 0;
    return 0;
}

static size_t take_body(struct reply *r, const char *bytes, size_t n) {
    if (n > r->left) n = (size_t)r->left;
    r->body(r->arg, bytes, n);
    r->left -= n;
    if (r->left == 0) r->state = r->state == REPLY_CHUNK ? REPLY_CHUNK_END : REPLY_COMPLETE;
    return n;
}

int reply_feed(struct reply *r, const char *bytes, size_t n, size_t *ret_used) {
    size_t at = 0;
    while (at < n && r->state != REPLY_COMPLETE) {
        size_t used = 0;
        if (r->state == REPLY_BODY || r->state == REPLY_CHUNK) {
            at += take_body(r, bytes + at, n - at);
            continue;
        }
        const char *mark = r->state == REPLY_HEAD ? "\r\n\r\n" : "\r\n";
        int found = gather(r, mark, bytes + at, n - at, &used);
        at += used;
        if (found < 0) return found;
        if (found == 0) break;
        int code = take_line(r);
        if (code < 0) return code;
    }
    *ret_used = at;
    return r->state == REPLY_COMPLETE;
}
