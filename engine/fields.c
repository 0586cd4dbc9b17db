#include "engine/fields.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/gguf.h"
#include "kernels/error.h"

void fields_fail(struct fields *f, int code, const char *format, ...) {
    if (f->code) return;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    f->code = error_set(f->err, code, "%s: %s", f->what, text);
}

/* One of the two, or neither. */
struct found {
    const json_t *json;
    const struct gguf_pair *pair;
};

static struct found find(const struct fields *f, const char *key) {
    struct found v = {NULL, NULL};
    if (f->gguf) v.pair = gguf_find(f->gguf, key);
    if (f->json) v.json = json_object_get(f->json, key);
    if (json_is_null(v.json)) v.json = NULL;
    return v;
}

static bool is_absent(struct found v) { return !v.json && !v.pair; }

bool fields_has(const struct fields *f, const char *key) { return !is_absent(find(f, key)); }

static void wrong_type(struct fields *f, const char *key, const char *want) {
    fields_fail(f, -EBADMSG, "%s is not %s", key, want);
}

static bool int_of(int64_t *ret, struct found v) {
    if (v.pair) return v.pair->kind != GGUF_KIND_ARRAY && gguf_get_int(ret, v.pair, 0);
    if (!json_is_integer(v.json)) return false;
    *ret = json_integer_value(v.json);
    return true;
}

static bool real_of(double *ret, struct found v) {
    int64_t i;
    if (int_of(&i, v)) {
        *ret = (double)i;
        return true;
    }
    if (v.pair) return v.pair->kind != GGUF_KIND_ARRAY && gguf_get_real(ret, v.pair, 0);
    *ret = json_real_value(v.json);
    return json_is_real(v.json);
}

int64_t fields_int(struct fields *f, const char *key, int64_t low, int64_t high, int64_t fallback) {
    struct found v = find(f, key);
    int64_t i = fallback == FIELDS_REQUIRED ? low : fallback;
    if (is_absent(v)) {
        if (fallback == FIELDS_REQUIRED) fields_fail(f, -EBADMSG, "%s is missing", key);
        return i;
    }
    int64_t value;
    if (!int_of(&value, v)) {
        wrong_type(f, key, "an integer");
    } else if (value < low || value > high) {
        fields_fail(f, -EBADMSG, "%s %" PRId64 ": %" PRId64 "..%" PRId64, key, value, low, high);
    } else {
        i = value;
    }
    return i;
}

double fields_real(struct fields *f, const char *key, double low, double high, double fallback) {
    struct found v = find(f, key);
    double x = isnan(fallback) ? low : fallback;
    if (is_absent(v)) {
        if (isnan(fallback)) fields_fail(f, -EBADMSG, "%s is missing", key);
        return x;
    }
    double value;
    if (!real_of(&value, v)) {
        wrong_type(f, key, "a number");
    } else if (!(value >= low && value <= high)) {
        fields_fail(f, -EBADMSG, "%s %g: %g..%g", key, value, low, high);
    } else {
        x = value;
    }
    return x;
}

bool fields_bool(struct fields *f, const char *key, bool fallback) {
    struct found v = find(f, key);
    bool b = fallback;
    if (is_absent(v)) return b;
    if (v.json ? !json_is_boolean(v.json) : !gguf_get_bool(&b, v.pair))
        wrong_type(f, key, "true or false");
    else if (v.json)
        b = json_is_true(v.json);
    return b;
}

void fields_text(struct fields *f, const char *key, char *dst, size_t size, const char *fallback) {
    struct found v = find(f, key);
    struct gguf_text text = {fallback ? fallback : "", fallback ? strlen(fallback) : 0};
    if (v.json && json_is_string(v.json))
        text = (struct gguf_text){json_string_value(v.json), json_string_length(v.json)};
    else if (v.json || (v.pair && !gguf_get_text(&text, v.pair)))
        wrong_type(f, key, "a string");
    else if (is_absent(v) && !fallback)
        fields_fail(f, -EBADMSG, "%s is missing", key);
    if (text.n >= size || memchr(text.bytes, 0, text.n)) {
        fields_fail(f, -EBADMSG, "%s: a text of %zu bytes: at most %zu, without NUL", key, text.n,
                    size - 1);
        text.n = 0;
    }
    memcpy(dst, text.bytes, text.n);
    dst[text.n] = 0;
}

int fields_ints(struct fields *f, const char *key, int64_t low, int64_t high, int32_t *dst,
                int max) {
    struct found v = find(f, key);
    if (is_absent(v)) return 0;
    if (!json_is_array(v.json)) {
        dst[0] = (int32_t)fields_int(f, key, low, high, low);
        return 1;
    }
    size_t n = json_array_size(v.json);
    if (n > (size_t)max) {
        fields_fail(f, -E2BIG, "%s has %zu elements: at most %d", key, n, max);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *element = json_array_get(v.json, i);
        json_int_t value = json_integer_value(element);
        if (!json_is_integer(element) || value < low || value > high) {
            fields_fail(f, -EBADMSG, "%s[%zu]: an integer in %" PRId64 "..%" PRId64, key, i, low,
                        high);
            return 0;
        }
        dst[i] = (int32_t)value;
    }
    return (int)n;
}
