#include "server/http_guard.h"

#include <string.h>
#include <strings.h>

/* DESIGN. A machine with one step for each byte. Its states are the places in a message's
 * grammar; a step returns false when it has found a fault. Zero is the state before a message,
 * so a zeroed guard is a new one. */
enum state {
    BETWEEN,
    BETWEEN_LF, /* an empty line before a request, which some clients send after a body */
    METHOD,
    TARGET,
    VERSION,
    LINE_LF, /* the LF of a line; then comes g->next */
    FIELD,   /* a field line begins, or the head ends */
    NAME,
    SPACE, /* before a value */
    VALUE,
    HEAD_LF,
    LENGTH, /* the body's bytes */
    SIZE,   /* a chunk's size */
    EXTENSION,
    CHUNK,
    CHUNK_CR,
    CHUNK_LF,
    TRAILER,
    TRAILER_NAME,
    TRAILER_LINE,
    TRAILERS_LF
};

enum field { OTHER, HOST, CONTENT_LENGTH, TRANSFER_ENCODING, COOKIE };

enum { MAX_EXTENSION = 256, MAX_DIGITS = 15 /* libmicrohttpd takes no more */ };

static bool fault(struct http_guard *g, enum api_error_kind kind, const char *text) {
    g->kind = kind;
    g->fault = text;
    return false;
}

static bool malformed(struct http_guard *g, const char *text) {
    return fault(g, API_ERROR_PROTOCOL, text);
}

static bool is_token(unsigned char c) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) return true;
    return c && strchr("!#$%&'*+-.^_`|~", c);
}

static bool go(struct http_guard *g, enum state state) {
    g->state = (int)state;
    g->at = 0;
    return true;
}

static bool end_line(struct http_guard *g, enum state next) {
    g->next = (int)next;
    return go(g, LINE_LF);
}

/* -- Request lines ------------------------------------------------------------------------- */

static bool step_method(struct http_guard *g, unsigned char c) {
    if (c == ' ' && g->at) return go(g, TARGET);
    if (!is_token(c)) return malformed(g, "the request line does not begin with a method");
    if (++g->at > HTTP_GUARD_MAX_METHOD) return malformed(g, "the method is too long");
    return true;
}

static bool step_between(struct http_guard *g, unsigned char c) {
    if (c == '\r') return go(g, BETWEEN_LF);
    go(g, METHOD);
    g->n_messages++;
    g->n_head = g->n_fields = g->n_parts = g->n_hosts = g->n_lengths = g->n_codings = 0;
    g->first = g->odd = g->digits = false;
    g->left = 0;
    if (c == 0x16) return malformed(g, "this port does not speak TLS");
    return step_method(g, c);
}

/* libmicrohttpd keeps each parameter and each cookie apart, whether anybody asks or not. */
static bool add_part(struct http_guard *g) {
    return ++g->n_parts < HTTP_GUARD_MAX_FIELDS ||
           fault(g, API_ERROR_HEADERS, "more than 100 parameters and cookies");
}

static bool step_target(struct http_guard *g, unsigned char c) {
    if (c == ' ' && g->at) return go(g, VERSION);
    if (c == '\r' || c == '\n') return malformed(g, "the request line has no version");
    if (c <= ' ' || c >= 0x7f)
        return malformed(g, "the request's target has a byte that must be percent-encoded");
    if (c == '&' && !add_part(g)) return false;
    if (++g->at > HTTP_GUARD_MAX_TARGET)
        return fault(g, API_ERROR_TARGET, "the request's target is longer than 8192 bytes");
    return true;
}

static bool step_version(struct http_guard *g, unsigned char c) {
    static const char word[] = "HTTP/1.";
    int at = g->at++;
    if (at < 7) {
        if (c == (unsigned char)word[at]) return true;
        if (at == 5 && c >= '0' && c <= '9')
            return fault(g, API_ERROR_VERSION, "the version is not HTTP/1.0 or HTTP/1.1");
        return malformed(g, "the request line does not end with a version");
    }
    if (at == 7) {
        g->first = c == '0';
        if (c == '0' || c == '1') return true;
        return fault(g, API_ERROR_VERSION, "the version is not HTTP/1.0 or HTTP/1.1");
    }
    return c == '\r' ? end_line(g, FIELD)
                     : malformed(g, "the request line does not end after the version");
}

static bool step_line_lf(struct http_guard *g, unsigned char c) {
    if (c != '\n') return malformed(g, "a carriage return without a line feed");
    return go(g, (enum state)g->next);
}

/* -- Fields -------------------------------------------------------------------------------- */

static enum field field_of(const char *name) {
    if (!strcasecmp(name, "host")) return HOST;
    if (!strcasecmp(name, "content-length")) return CONTENT_LENGTH;
    if (!strcasecmp(name, "cookie")) return COOKIE;
    return strcasecmp(name, "transfer-encoding") ? OTHER : TRANSFER_ENCODING;
}

static bool step_name(struct http_guard *g, unsigned char c) {
    if (c == ':' && g->at) {
        g->name[g->at < (int)sizeof g->name ? g->at : 0] = 0;
        g->field = (int)field_of(g->name);
        g->n_hosts += g->field == HOST;
        g->n_lengths += g->field == CONTENT_LENGTH;
        g->n_codings += g->field == TRANSFER_ENCODING;
        return go(g, SPACE);
    }
    if (!is_token(c)) return malformed(g, "a header's name has a byte that names do not have");
    if (g->at < (int)sizeof g->name) g->name[g->at] = (char)c;
    g->at++;
    return true;
}

static bool step_field(struct http_guard *g, unsigned char c) {
    if (c == '\r') return go(g, HEAD_LF);
    if (c == ' ' || c == '\t') return malformed(g, "a header line is folded");
    if (++g->n_fields > HTTP_GUARD_MAX_FIELDS)
        return fault(g, API_ERROR_HEADERS, "more than 100 headers");
    go(g, NAME);
    return step_name(g, c);
}

static bool add_digit(struct http_guard *g, unsigned digit, unsigned base) {
    if (g->left > ((uint64_t)INT64_MAX - digit) / base)
        return malformed(g, "a length is out of range");
    g->left = g->left * base + digit;
    g->digits = true;
    return true;
}

/* White space at a value's end is no part of it; anything after it would be. */
static bool step_length_value(struct http_guard *g, unsigned char c) {
    if (c == ' ' || c == '\t') {
        g->at = 1;
        return true;
    }
    if (g->at || c < '0' || c > '9') return malformed(g, "Content-Length is not a number");
    return add_digit(g, c - '0', 10);
}

static bool step_coding_value(struct http_guard *g, unsigned char c) {
    static const char word[] = "chunked";
    if (g->at < 7 && (c | 0x20) == (unsigned char)word[g->at])
        g->at++;
    else if (!(g->at == 7 && (c == ' ' || c == '\t')))
        g->odd = true;
    return true;
}

static bool end_value(struct http_guard *g) {
    if (g->field == CONTENT_LENGTH && !g->digits) return malformed(g, "empty Content-Length");
    if (g->field == TRANSFER_ENCODING && g->at != 7) g->odd = true;
    return end_line(g, FIELD);
}

static bool step_value(struct http_guard *g, unsigned char c) {
    if (c == '\r') return end_value(g);
    if ((c < ' ' && c != '\t') || c == 0x7f)
        return malformed(g, "a header has a control character");
    if (g->field == CONTENT_LENGTH) return g->n_lengths > 1 || step_length_value(g, c);
    if (g->field == TRANSFER_ENCODING) return step_coding_value(g, c);
    return g->field != COOKIE || c != ';' || add_part(g);
}

static bool step_space(struct http_guard *g, unsigned char c) {
    if (c == ' ' || c == '\t') return true;
    go(g, VALUE);
    return step_value(g, c);
}

static bool step_head_end(struct http_guard *g, unsigned char c) {
    if (c != '\n') return malformed(g, "a carriage return without a line feed");
    if (g->n_lengths && g->n_codings)
        return malformed(g, "Content-Length and Transfer-Encoding in one request");
    if (g->n_lengths > 1) return malformed(g, "more than one Content-Length");
    if (g->n_codings > 1) return malformed(g, "more than one Transfer-Encoding");
    if (g->n_codings && g->odd) return malformed(g, "the only Transfer-Encoding is 'chunked'");
    if (g->n_codings && g->first) return malformed(g, "HTTP/1.0 has no Transfer-Encoding");
    if (g->n_hosts > 1) return malformed(g, "more than one Host");
    if (!g->n_hosts && !g->first) return malformed(g, "no Host");
    g->n_head = 0;
    g->digits = false;
    if (g->n_codings) return go(g, SIZE);
    return go(g, g->left ? LENGTH : BETWEEN);
}

/* -- Bodies -------------------------------------------------------------------------------- */

static int hex(unsigned char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool end_size(struct http_guard *g) {
    g->digits = false;
    return end_line(g, g->left ? CHUNK : TRAILER);
}

static bool step_size(struct http_guard *g, unsigned char c) {
    int digit = hex(c);
    if (digit >= 0 && g->at++ < MAX_DIGITS) return add_digit(g, (unsigned)digit, 16);
    if (!g->digits) return malformed(g, "a chunk has no size");
    if (c == '\r') return end_size(g);
    return c == ';' ? go(g, EXTENSION) : malformed(g, "a chunk's size is not a number");
}

static bool step_extension(struct http_guard *g, unsigned char c) {
    if (c == '\r') return end_size(g);
    if ((c < ' ' && c != '\t') || c == 0x7f || ++g->at > MAX_EXTENSION)
        return malformed(g, "a chunk's extension is too long or has a control character");
    return true;
}

static bool step_trailer_name(struct http_guard *g, unsigned char c) {
    if (c == ':' && g->at) return go(g, TRAILER_LINE);
    g->at = 1;
    return is_token(c) || malformed(g, "a trailer does not begin with a name");
}

static bool step_trailer(struct http_guard *g, unsigned char c) {
    if (c == '\r') return go(g, TRAILERS_LF);
    return go(g, TRAILER_NAME) && step_trailer_name(g, c);
}

static bool step_trailer_line(struct http_guard *g, unsigned char c) {
    if (c == '\r') return end_line(g, TRAILER);
    if ((c < ' ' && c != '\t') || c == 0x7f)
        return malformed(g, "a trailer has a control character");
    return true;
}

static bool expect(struct http_guard *g, unsigned char c, unsigned char wanted, enum state next,
                   const char *text) {
    return c == wanted ? go(g, next) : malformed(g, text);
}

static bool step(struct http_guard *g, unsigned char c) {
    switch ((enum state)g->state) {
    case BETWEEN:
        return step_between(g, c);
    case BETWEEN_LF:
        return expect(g, c, '\n', BETWEEN, "a carriage return without a line feed");
    case METHOD:
        return step_method(g, c);
    case TARGET:
        return step_target(g, c);
    case VERSION:
        return step_version(g, c);
    case LINE_LF:
        return step_line_lf(g, c);
    case FIELD:
        return step_field(g, c);
    case NAME:
        return step_name(g, c);
    case SPACE:
        return step_space(g, c);
    case VALUE:
        return step_value(g, c);
    case HEAD_LF:
        return step_head_end(g, c);
    case SIZE:
        return step_size(g, c);
    case EXTENSION:
        return step_extension(g, c);
    case CHUNK_CR:
        return expect(g, c, '\r', CHUNK_LF, "a chunk is longer than its size");
    case CHUNK_LF:
        return expect(g, c, '\n', SIZE, "a chunk is longer than its size");
    case TRAILER:
        return step_trailer(g, c);
    case TRAILER_NAME:
        return step_trailer_name(g, c);
    case TRAILER_LINE:
        return step_trailer_line(g, c);
    case TRAILERS_LF:
        return expect(g, c, '\n', BETWEEN, "a carriage return without a line feed");
    case LENGTH:
    case CHUNK:
        break;
    }
    return true;
}

static bool in_data(const struct http_guard *g) { return g->state == LENGTH || g->state == CHUNK; }

/* Bytes of the body that are there. */
static size_t skip(struct http_guard *g, size_t n) {
    if (n > g->left) n = (size_t)g->left;
    g->left -= n;
    g->n_head = 0;
    if (g->left == 0) go(g, g->state == LENGTH ? BETWEEN : CHUNK_CR);
    return n;
}

enum http_guard_part http_guard_part(const struct http_guard *g) {
    if (g->state <= BETWEEN_LF) return HTTP_GUARD_BETWEEN;
    return g->state < LENGTH && !(g->state == LINE_LF && g->next > HEAD_LF) ? HTTP_GUARD_HEAD
                                                                            : HTTP_GUARD_BODY;
}

/* Most of a head is values that mean nothing here: plain bytes that need no step each. */
static size_t skip_value(struct http_guard *g, const char *bytes, size_t n) {
    size_t i = 0, room = (size_t)(HTTP_GUARD_MAX_HEAD - g->n_head);
    if (n > room) n = room;
    while (i < n && (unsigned char)bytes[i] >= ' ' && bytes[i] != 0x7f) i++;
    g->n_head += (int)i;
    return i;
}

size_t http_guard_feed(struct http_guard *g, const char *bytes, size_t n) {
    size_t message = 0; /* where the present one begins, if it does in these bytes */
    if (g->fault) return 0;
    for (size_t i = 0; i < n;) {
        if (in_data(g)) {
            i += skip(g, n - i);
            continue;
        }
        if (g->state == VALUE && (g->field == OTHER || g->field == HOST)) {
            i += skip_value(g, bytes + i, n - i);
            if (i == n) break;
        }
        if (http_guard_part(g) == HTTP_GUARD_BETWEEN) message = i;
        bool good = step(g, (unsigned char)bytes[i]);
        if (good && ++g->n_head > HTTP_GUARD_MAX_HEAD)
            good = fault(g, API_ERROR_HEADERS, "the request's head is longer than 16384 bytes");
        if (!good) return http_guard_part(g) == HTTP_GUARD_BODY ? i : message;
        i++;
    }
    return n;
}
