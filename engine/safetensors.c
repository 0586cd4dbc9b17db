#include "engine/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json_guard.h"
#include "kernels/error.h"

enum {
    MAX_HEADER = 100000000, /* the format's own limit */
    LENGTH_BYTES = 8
};

/* A tensor takes about a dozen elements: room for 80,000 of them. */
static const struct json_guard_limits limits = {.max_depth = 8, .max_items = 1u << 20};

static const struct {
    const char *name;
    size_t size;
} types[SAFETENSORS_N_TYPES] = {
    [SAFETENSORS_F64] = {"F64", 8},         [SAFETENSORS_I64] = {"I64", 8},
    [SAFETENSORS_U64] = {"U64", 8},         [SAFETENSORS_F32] = {"F32", 4},
    [SAFETENSORS_I32] = {"I32", 4},         [SAFETENSORS_U32] = {"U32", 4},
    [SAFETENSORS_F16] = {"F16", 2},         [SAFETENSORS_BF16] = {"BF16", 2},
    [SAFETENSORS_I16] = {"I16", 2},         [SAFETENSORS_U16] = {"U16", 2},
    [SAFETENSORS_I8] = {"I8", 1},           [SAFETENSORS_U8] = {"U8", 1},
    [SAFETENSORS_BOOL] = {"BOOL", 1},       [SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1},
    [SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1},
};

size_t safetensors_type_size(enum safetensors_type type) { return types[type].size; }
const char *safetensors_type_name(enum safetensors_type type) { return types[type].name; }

static uint64_t read_u64(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static int parse_type(struct safetensors_tensor *t, const json_t *value, struct error *err) {
    const char *text = json_string_value(value);
    if (!text) return error_set(err, -EBADMSG, "tensor '%.100s': dtype is not a string", t->name);
    for (int i = 0; i < SAFETENSORS_N_TYPES; i++)
        if (!strcmp(text, types[i].name)) {
            t->type = (enum safetensors_type)i;
            return 0;
        }
    return error_set(err, -EBADMSG, "tensor '%.100s': dtype '%.20s' is unknown", t->name, text);
}

static int parse_shape(struct safetensors_tensor *t, const json_t *value, struct error *err) {
    size_t n = json_array_size(value), i;
    const json_t *dim;
    if (!json_is_array(value))
        return error_set(err, -EBADMSG, "tensor '%.100s': shape is not an array", t->name);
    if (n > SAFETENSORS_MAX_DIMS)
        return error_set(err, -E2BIG, "tensor '%.100s': shape has %zu dimensions: at most %d",
                         t->name, n, SAFETENSORS_MAX_DIMS);
    uint64_t bytes = types[t->type].size;
    json_array_foreach(value, i, dim) {
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return error_set(err, -EBADMSG, "tensor '%.100s': shape[%zu] is not a natural number",
                             t->name, i);
        t->shape[i] = (uint64_t)json_integer_value(dim);
        if (t->shape[i] && bytes > INT64_MAX / t->shape[i])
            return error_set(err, -EBADMSG, "tensor '%.100s': shape overflows 63 bits", t->name);
        bytes *= t->shape[i];
    }
    t->n_dims = (int)n;
    t->n_bytes = bytes;
    return 0;
}

/* Leaves the place relative to the data section in *begin. */
static int parse_offsets(uint64_t *begin, struct safetensors_tensor *t, const json_t *value,
                         uint64_t n_data, struct error *err) {
    if (!json_is_array(value) || json_array_size(value) != 2)
        return error_set(err, -EBADMSG, "tensor '%.100s': data_offsets is not a pair", t->name);
    const json_t *from = json_array_get(value, 0), *to = json_array_get(value, 1);
    if (!json_is_integer(from) || !json_is_integer(to))
        return error_set(err, -EBADMSG, "tensor '%.100s': data_offsets are not integers", t->name);
    json_int_t b = json_integer_value(from), e = json_integer_value(to);
    if (b < 0 || e < b)
        return error_set(err, -EBADMSG,
                         "tensor '%.100s': data_offsets [%" JSON_INTEGER_FORMAT
                         ", %" JSON_INTEGER_FORMAT "] are no range",
                         t->name, b, e);
    if ((uint64_t)e > n_data)
        return error_set(err, -EBADMSG,
                         "tensor '%.100s': data_offsets end at %" JSON_INTEGER_FORMAT
                         ", the data at %" PRIu64,
                         t->name, e, n_data);
    if ((uint64_t)(e - b) != t->n_bytes)
        return error_set(err, -EBADMSG,
                         "tensor '%.100s': data_offsets span %" JSON_INTEGER_FORMAT
                         " bytes, shape and dtype need %" PRIu64,
                         t->name, e - b, t->n_bytes);
    *begin = (uint64_t)b;
    return 0;
}

static int parse_tensor(struct safetensors_tensor *t, const json_t *value, const uint8_t *data,
                        uint64_t n_data, struct error *err) {
    if (!json_is_object(value))
        return error_set(err, -EBADMSG, "tensor '%.100s': is not an object", t->name);
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!json_object_get(value, keys[i]))
            return error_set(err, -EBADMSG, "tensor '%.100s': %s is missing", t->name, keys[i]);
    uint64_t begin = 0;
    int r = parse_type(t, json_object_get(value, "dtype"), err);
    if (!r) r = parse_shape(t, json_object_get(value, "shape"), err);
    if (!r) r = parse_offsets(&begin, t, json_object_get(value, "data_offsets"), n_data, err);
    if (!r) t->data = data + begin;
    return r;
}

static int check_metadata(const json_t *value, struct error *err) {
    if (!json_is_object(value))
        return error_set(err, -EBADMSG, "header: __metadata__ is not an object");
    const char *key;
    json_t *entry;
    json_object_foreach((json_t *)(uintptr_t)value, key, entry) {
        if (!json_is_string(entry))
            return error_set(err, -EBADMSG, "header: __metadata__ '%.100s' is not a string", key);
    }
    return 0;
}

static int by_place(const void *a, const void *b) {
    const struct safetensors_tensor *x = a, *y = b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    if (p != q) return p < q ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

static int by_name(const void *a, const void *b) {
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The tensors, taken by place, must tile the data section. */
static int check_tiling(const struct safetensors *st, const uint8_t *data, uint64_t n_data,
                        struct error *err) {
    uint64_t at = 0;
    for (size_t i = 0; i < st->n_tensors; i++) {
        const struct safetensors_tensor *t = &st->tensors[i];
        uint64_t begin = (uint64_t)((const uint8_t *)t->data - data);
        if (begin != at)
            return error_set(
                err, -EBADMSG, "tensor '%.100s': data_offsets begin at %" PRIu64 ", %s %" PRIu64,
                t->name, begin,
                begin < at ? "overlapping the one before, which ends at" : "leaving a hole after",
                at);
        at += t->n_bytes;
    }
    if (at != n_data)
        return error_set(err, -EBADMSG, "data: %" PRIu64 " bytes, of which tensors use %" PRIu64,
                         n_data, at);
    return 0;
}

static int allocate(struct safetensors *st, const json_t *header, struct error *err) {
    size_t n = json_object_size(header), n_names = 1;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)header, key, value) n_names += strlen(key) + 1;
    st->tensors = calloc(n ? n : 1, sizeof *st->tensors);
    st->names = malloc(n_names);
    if (!st->tensors || !st->names) return error_set(err, -ENOMEM, "header: out of memory");
    return 0;
}

static int fill(struct safetensors *st, const json_t *header, const uint8_t *data, uint64_t n_data,
                struct error *err) {
    int r = allocate(st, header, err);
    if (r < 0) return r;
    char *names = st->names;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)header, key, value) {
        if (!strcmp(key, "__metadata__")) {
            r = check_metadata(value, err);
            if (r < 0) return r;
            continue;
        }
        struct safetensors_tensor *t = &st->tensors[st->n_tensors];
        size_t n = strlen(key) + 1;
        t->name = memcpy(names, key, n);
        names += n;
        r = parse_tensor(t, value, data, n_data, err);
        if (r < 0) return r;
        st->n_tensors++;
    }
    qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_place);
    r = check_tiling(st, data, n_data, err);
    qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
    return r;
}

int safetensors_parse(struct safetensors *ret, const void *bytes, size_t n, struct error *err) {
    const uint8_t *p = bytes;
    if (n < LENGTH_BYTES)
        return error_set(err, -EBADMSG, "header length: the file has %zu bytes", n);
    uint64_t length = read_u64(p);
    if (length == 0 || length > MAX_HEADER)
        return error_set(err, -EBADMSG, "header length %" PRIu64 ": 1..%d", length, MAX_HEADER);
    if (length > n - LENGTH_BYTES)
        return error_set(err, -EBADMSG, "header length %" PRIu64 ": the file has %zu bytes", length,
                         n);
    json_t *header = NULL;
    int r = json_guard_parse(&header, p + LENGTH_BYTES, (size_t)length, &limits, "header", err);
    if (r < 0) return r;

    struct safetensors st = {0};
    map_wrap(&st.map, bytes, n);
    const uint8_t *data = p + LENGTH_BYTES + length;
    if (!json_is_object(header))
        r = error_set(err, -EBADMSG, "header: is not a JSON object");
    else
        r = fill(&st, header, data, n - LENGTH_BYTES - length, err);
    json_decref(header);
    if (r < 0)
        safetensors_close(&st);
    else
        *ret = st;
    return r;
}

int safetensors_open(struct safetensors *ret, const char *path, struct error *err) {
    struct map map;
    int r = map_open(&map, path, err);
    if (r < 0) return r;
    struct safetensors st;
    r = safetensors_parse(&st, map.bytes, map.size, err);
    if (r < 0) {
        map_close(&map);
        return error_prefix(err, r, "%s", path);
    }
    st.map = map;
    *ret = st;
    return 0;
}

void safetensors_close(struct safetensors *st) {
    free(st->tensors);
    free(st->names);
    map_close(&st->map);
    *st = (struct safetensors){0};
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name) {
    struct safetensors_tensor key = {.name = name};
    return bsearch(&key, st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
}
