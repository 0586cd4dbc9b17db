#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/pattern.h"

#include <ctype.h>
#include <errno.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "kernels/error.h"

struct pattern {
    pcre2_code *code;
};

struct pattern_work {
    pcre2_match_data *match;
    pcre2_match_context *context;
};

/* The place of a rewriting: what is left to read and where the result goes. */
struct cursor {
    const char *at, *end;
    struct buf *out;
    struct error *err;
};

static int refuse(const struct cursor *c, const char *what) {
    return error_set(c->err, -ENOTSUP, "regular expression: %s is not supported", what);
}

static bool looking_at(const struct cursor *c, const char *text) {
    size_t n = strlen(text);
    return (size_t)(c->end - c->at) >= n && memcmp(c->at, text, n) == 0;
}

static int copy(struct cursor *c, size_t n) {
    int r = buf_append(c->out, c->at, n);
    c->at += n;
    return r;
}

/* \p{..}: general categories only. Longer names are scripts and properties, where the two
 * engines differ (PCRE2 takes script extensions). */
static int copy_property(struct cursor *c) {
    const char *name = c->at + 2;
    if (name == c->end || *name != '{') return refuse(c, "\\p without braces");
    name++;
    if (name < c->end && *name == '^') name++;
    const char *close = name;
    while (close < c->end && isalpha((unsigned char)*close)) close++;
    if (close == c->end || *close != '}' || close - name < 1 || close - name > 2)
        return refuse(c, "a property other than a general category");
    return copy(c, (size_t)(close + 1 - c->at));
}

/* \uHHHH, which PCRE2 spells \x{HHHH}. */
static int copy_code(struct cursor *c) {
    if (c->end - c->at < 6) return refuse(c, "\\u without four digits");
    for (int i = 2; i < 6; i++)
        if (!isxdigit((unsigned char)c->at[i])) return refuse(c, "\\u without four digits");
    int r = buf_printf(c->out, "\\x{%.4s}", c->at + 2);
    c->at += 6;
    return r;
}

static int copy_escape(struct cursor *c) {
    if (c->end - c->at < 2) return refuse(c, "a lone backslash");
    unsigned char kind = (unsigned char)c->at[1];
    switch (kind) {
    /* PCRE2's own \s has U+180E besides the White_Space property. */
    case 's':
        c->at += 2;
        return buf_puts(c->out, "\\p{wspace}");
    case 'S':
        c->at += 2;
        return buf_puts(c->out, "\\P{wspace}");
    case 'p':
    case 'P':
        return copy_property(c);
    case 'u':
        return copy_code(c);
    case 'r':
    case 'n':
    case 't':
    case 'f':
    case 'd':
    case 'D':
        return copy(c, 2);
    case 'x':
        if (c->end - c->at > 2 && c->at[2] == '{') return copy(c, 2);
        return refuse(c, "\\x without braces");
    default:
        if (isalnum(kind)) return refuse(c, (char[]){'\\', (char)kind, '\0'});
        return copy(c, 2);
    }
}

/* A class; Oniguruma's may hold further classes, which are spread out here since PCRE2 takes
 * an inner '[' for itself. A '-' at a border stands for itself and must stay so. */
static int copy_class(struct cursor *c) {
    int depth = 0, r = 0;
    bool border = true;
    while (r == 0 && c->at < c->end) {
        if (looking_at(c, "[:")) return refuse(c, "a POSIX class");
        if (looking_at(c, "&&")) return refuse(c, "an intersection of classes");
        if (*c->at == '[') {
            if (depth && looking_at(c, "[^")) return refuse(c, "a negated class inside a class");
            if (depth == 0) r = buf_puts(c->out, looking_at(c, "[^") ? "[^" : "[");
            c->at += looking_at(c, "[^") ? 2 : 1;
            depth++;
            border = true;
            if (r == 0 && c->at < c->end && *c->at == ']') return refuse(c, "an empty class");
        } else if (*c->at == ']') {
            c->at++;
            if (--depth == 0) return buf_puts(c->out, "]");
            border = true;
        } else if (*c->at == '\\') {
            r = copy_escape(c);
            border = false;
        } else if (*c->at == '-' && (border || (c->end - c->at > 1 && strchr("[]", c->at[1])))) {
            c->at++;
            r = buf_puts(c->out, "\\-");
            border = false;
        } else {
            r = copy(c, 1);
            border = false;
        }
    }
    return r < 0 ? r : refuse(c, "an unclosed class");
}

static int copy_group(struct cursor *c) {
    static const char *const known[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    if (looking_at(c, "(*")) return refuse(c, "(*");
    if (!looking_at(c, "(?")) return copy(c, 1);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (looking_at(c, known[i])) return copy(c, strlen(known[i]));
    return refuse(c, "this kind of group");
}

static int translate(struct cursor *c) {
    int r = 0;
    while (r == 0 && c->at < c->end) {
        switch (*c->at) {
        case '\\':
            r = copy_escape(c);
            break;
        case '[':
            r = copy_class(c);
            break;
        case '(':
            r = copy_group(c);
            break;
        case '^':
        case '$':
            /* Oniguruma's stand for the ends of lines. */
            return refuse(c, "an anchor");
        case '}':
            /* possessive in one engine, repeated in the other */
            if (looking_at(c, "}+")) return refuse(c, "'}+'");
            r = copy(c, 1);
            break;
        default:
            r = copy(c, 1);
        }
    }
    return r == -ENOMEM ? error_set(c->err, r, "regular expression: out of memory") : r;
}

static int compile(struct pattern *p, const struct buf *text, uint32_t options, struct error *err) {
    int code;
    PCRE2_SIZE at;
    p->code = pcre2_compile((PCRE2_SPTR)(text->data ? text->data : ""), text->len, options, &code,
                            &at, NULL);
    if (!p->code) {
        char why[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return error_set(err, -EBADMSG, "regular expression, byte %zu: %s", at, why);
    }
    /* Without a just-in-time compiler the interpreter does the same work. */
    (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
    return 0;
}

int pattern_new(struct pattern **ret, const char *text, size_t n, bool literal, struct error *err) {
    if (n == 0 || n > PATTERN_MAX)
        return error_set(err, -ENOTSUP, "regular expression: %zu bytes, limit %d", n, PATTERN_MAX);
    struct buf rewritten = {0};
    struct pattern *p = calloc(1, sizeof *p);
    int r = -ENOMEM;
    if (!p) goto out;
    if (literal) {
        r = buf_append(&rewritten, text, n);
    } else {
        struct cursor c = {.at = text, .end = text + n, .out = &rewritten, .err = err};
        r = translate(&c);
    }
    if (r < 0) goto out;
    r = compile(p, &rewritten, PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP), err);
    if (r < 0) goto out;
    *ret = p;
    p = NULL;
out:
    if (r == -ENOMEM) error_set(err, r, "regular expression: out of memory");
    pattern_free(p);
    buf_free(&rewritten);
    return r;
}

void pattern_free(struct pattern *p) {
    if (!p) return;
    pcre2_code_free(p->code);
    free(p);
}

struct pattern_work *pattern_work_new(void) {
    struct pattern_work *work = calloc(1, sizeof *work);
    if (!work) return NULL;
    work->match = pcre2_match_data_create(1, NULL);
    work->context = pcre2_match_context_create(NULL);
    if (work->match && work->context) return work;
    pattern_work_free(work);
    return NULL;
}

void pattern_work_free(struct pattern_work *work) {
    if (!work) return;
    pcre2_match_data_free(work->match);
    pcre2_match_context_free(work->context);
    free(work);
}

int pattern_find(const struct pattern *p, struct pattern_work *work, const char *text, size_t n,
                 size_t from, size_t *ret_start, size_t *ret_end) {
    uint32_t options = PCRE2_NO_UTF_CHECK; /* else every call would read the whole text */
    int r = pcre2_match(p->code, (PCRE2_SPTR)text, n, from, options, work->match, work->context);
    if (r == PCRE2_ERROR_JIT_STACKLIMIT)
        r = pcre2_match(p->code, (PCRE2_SPTR)text, n, from, options | PCRE2_NO_JIT, work->match,
                        work->context);
    if (r == PCRE2_ERROR_NOMATCH) return 0;
    if (r == PCRE2_ERROR_NOMEMORY) return -ENOMEM;
    if (r < 0) return -E2BIG;
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(work->match);
    /* \K inside a lookahead could do this; it is refused above, but costs nothing to check. */
    if (place[1] < place[0] || place[0] < from) return -E2BIG;
    *ret_start = place[0];
    *ret_end = place[1];
    return 1;
}
