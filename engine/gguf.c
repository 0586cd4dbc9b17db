#include "engine/gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/float16.h"

enum {
    MAX_PAIRS = 1 << 16,
    MAX_TENSORS = 1 << 17,
    MIN_PAIR_BYTES = 8 + 1 + 4 + 1,           /* a key of one letter and a byte */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8, /* a name of one letter and one dimension */
    MIN_ALIGN = 8,                            /* the format asks for multiples of 8 */
    MAX_ALIGN = 1 << 16
};

/* Reads forward; what does not fit in the rest makes it fail for good. */
struct cursor {
    const uint8_t *at, *end;
    bool failed;
};

static const uint8_t *take(struct cursor *c, uint64_t n) {
    static const uint8_t zeros[8];
    if (c->failed || n > (uint64_t)(c->end - c->at)) {
        c->failed = true;
        return zeros;
    }
    const uint8_t *p = c->at;
    c->at += n;
    return p;
}

static uint64_t load(const uint8_t *p, int n) {
    uint64_t v = 0;
    while (n--) v = v << 8 | p[n];
    return v;
}

static uint32_t take_u32(struct cursor *c) { return (uint32_t)load(take(c, 4), 4); }
static uint64_t take_u64(struct cursor *c) { return load(take(c, 8), 8); }

/* Empty when it fails. */
static struct gguf_text take_text(struct cursor *c) {
    uint64_t n = take_u64(c);
    const uint8_t *p = take(c, n);
    return (struct gguf_text){(const char *)p, c->failed ? 0 : (size_t)n};
}

/* 0 for strings, arrays and numbers that are no kind. */
static int kind_size(uint32_t kind) {
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return kind < sizeof sizes ? sizes[kind] : 0;
}

static bool is_printable(struct gguf_text text) {
    for (size_t i = 0; i < text.n; i++)
        if (text.bytes[i] <= ' ' || text.bytes[i] > '~') return false;
    return text.n > 0;
}

static int cut(struct gguf_text text) { return text.n < 80 ? (int)text.n : 80; }

static void skip_elements(struct cursor *c, uint32_t kind, uint64_t n) {
    uint64_t size = (uint64_t)kind_size(kind);
    if (kind == GGUF_KIND_STRING) {
        for (uint64_t i = 0; i < n && !c->failed; i++) take_text(c);
    } else if (n > (uint64_t)(c->end - c->at) / size) {
        c->failed = true;
    } else {
        take(c, n * size);
    }
}

static int parse_pair(struct gguf_pair *pair, struct cursor *c, struct error *err) {
    pair->key = take_text(c);
    if (c->failed) return error_set(err, -EBADMSG, "metadata: the file ends in a key");
    if (!is_printable(pair->key) || pair->key.n > 65535)
        return error_set(err, -EBADMSG, "metadata: a key of %zu bytes is not printable ASCII",
                         pair->key.n);
    const char *key = pair->key.bytes;
    int n_key = cut(pair->key);
    uint32_t kind = pair->kind = take_u32(c);
    pair->n = 1;
    if (kind == GGUF_KIND_ARRAY) {
        kind = pair->element = take_u32(c);
        pair->n = take_u64(c);
        if (kind == GGUF_KIND_ARRAY)
            return error_set(err, -ENOTSUP, "key '%.*s': an array of arrays", n_key, key);
    }
    if (!c->failed && kind != GGUF_KIND_STRING && !kind_size(kind))
        return error_set(err, -EBADMSG, "key '%.*s': value type %" PRIu32 " is unknown", n_key, key,
                         kind);
    pair->at = c->at;
    if (!c->failed) skip_elements(c, kind, pair->n);
    if (c->failed)
        return error_set(err, -EBADMSG, "key '%.*s': the value runs past the end of the file",
                         n_key, key);
    return 0;
}

static int compare_text(struct gguf_text a, struct gguf_text b) {
    int r = memcmp(a.bytes, b.bytes, a.n < b.n ? a.n : b.n);
    return r ? r : (a.n > b.n) - (a.n < b.n);
}

static int by_key(const void *a, const void *b) {
    const struct gguf_pair *x = a, *y = b;
    return compare_text(x->key, y->key);
}

static int by_name(const void *a, const void *b) {
    const struct gguf_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int by_place(const void *a, const void *b) {
    const struct gguf_tensor *x = a, *y = b;
    return (x->data > y->data) - (x->data < y->data);
}

static int parse_pairs(struct gguf *g, struct cursor *c, uint64_t n, struct error *err) {
    if (n > MAX_PAIRS || n > (uint64_t)(c->end - c->at) / MIN_PAIR_BYTES)
        return error_set(err, -EBADMSG, "metadata: a count of %" PRIu64 " does not fit the file",
                         n);
    g->pairs = calloc(n ? (size_t)n : 1, sizeof *g->pairs);
    if (!g->pairs) return error_set(err, -ENOMEM, "metadata: out of memory");
    for (; g->n_pairs < n; g->n_pairs++) {
        int r = parse_pair(&g->pairs[g->n_pairs], c, err);
        if (r < 0) return r;
    }
    qsort(g->pairs, g->n_pairs, sizeof *g->pairs, by_key);
    for (size_t i = 1; i < g->n_pairs; i++)
        if (!by_key(&g->pairs[i - 1], &g->pairs[i]))
            return error_set(err, -EBADMSG, "key '%.*s': occurs twice", cut(g->pairs[i].key),
                             g->pairs[i].key.bytes);
    return 0;
}

static int parse_alignment(uint64_t *ret, const struct gguf *g, struct error *err) {
    const struct gguf_pair *pair = gguf_find(g, "general.alignment");
    int64_t v = 32;
    if (pair && !gguf_get_int(&v, pair, 0))
        return error_set(err, -EBADMSG, "key 'general.alignment': is not an integer");
    if (v < MIN_ALIGN || v > MAX_ALIGN || (v & (v - 1)))
        return error_set(err, -EBADMSG,
                         "key 'general.alignment' %" PRId64 ": a power of two in %d..%d", v,
                         MIN_ALIGN, MAX_ALIGN);
    *ret = (uint64_t)v;
    return 0;
}

static int parse_dims(struct gguf_tensor *t, struct cursor *c, struct error *err) {
    uint32_t n = take_u32(c);
    if (!c->failed && (n < 1 || n > GGUF_MAX_DIMS))
        return error_set(err, -EBADMSG, "tensor '%s': %" PRIu32 " dimensions: 1..%d", t->name, n,
                         GGUF_MAX_DIMS);
    t->n_dims = (int)n;
    uint64_t elements = 1;
    for (uint32_t i = 0; i < GGUF_MAX_DIMS; i++) {
        t->dims[i] = i < n ? take_u64(c) : 1;
        if (c->failed) break;
        if (!t->dims[i] || t->dims[i] > INT64_MAX / elements)
            return error_set(err, -EBADMSG, "tensor '%s': dimension %" PRIu32 " is %" PRIu64,
                             t->name, i, t->dims[i]);
        elements *= t->dims[i];
    }
    return 0;
}

static int parse_type(struct gguf_tensor *t, struct cursor *c, struct error *err) {
    uint32_t type = take_u32(c);
    if (c->failed) return 0;
    t->type = gguf_quants_find(type);
    if (!t->type)
        return error_set(err, -ENOTSUP, "tensor '%s': type %" PRIu32 " is not supported", t->name,
                         type);
    uint64_t block = (uint64_t)t->type->block, size = (uint64_t)t->type->n_bytes;
    if (t->dims[0] % block)
        return error_set(err, -EBADMSG,
                         "tensor '%s': rows of %" PRIu64 ": %s needs multiples of %d", t->name,
                         t->dims[0], t->type->name, t->type->block);
    uint64_t blocks = t->dims[0] / block * t->dims[1] * t->dims[2] * t->dims[3];
    if (blocks > INT64_MAX / size)
        return error_set(err, -EBADMSG, "tensor '%s': dimensions overflow 64 bits", t->name);
    t->n_bytes = blocks * size;
    return 0;
}

/* Leaves the offset in *ret: the data section's place is known only after the last tensor. */
static int parse_tensor(uint64_t *ret, struct gguf_tensor *t, struct cursor *c, struct error *err) {
    struct gguf_text name = take_text(c);
    if (!c->failed && (!is_printable(name) || name.n > GGUF_MAX_NAME))
        return error_set(err, -EBADMSG, "tensor name '%.*s': 1..%d printable characters",
                         is_printable(name) ? cut(name) : 0, name.bytes, GGUF_MAX_NAME);
    if (!c->failed) memcpy(t->name, name.bytes, name.n);
    int r = parse_dims(t, c, err);
    if (!r) r = parse_type(t, c, err);
    *ret = take_u64(c);
    if (!r && c->failed)
        r = error_set(err, -EBADMSG, "tensor '%s': the file ends in its description", t->name);
    return r;
}

static int place_tensor(struct gguf_tensor *t, uint64_t offset, uint64_t align, const uint8_t *data,
                        uint64_t n_data, struct error *err) {
    if (offset % align)
        return error_set(err, -EBADMSG,
                         "tensor '%s': offset %" PRIu64 " is no multiple of the alignment %" PRIu64,
                         t->name, offset, align);
    if (offset > n_data || t->n_bytes > n_data - offset)
        return error_set(err, -EBADMSG,
                         "tensor '%s': offset %" PRIu64 " and %" PRIu64
                         " bytes, the data section has %" PRIu64,
                         t->name, offset, t->n_bytes, n_data);
    t->data = data + offset;
    return 0;
}

static int check_tensors(struct gguf *g, struct error *err) {
    struct gguf_tensor *t = g->tensors;
    qsort(t, g->n_tensors, sizeof *t, by_place);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (t[i - 1].n_bytes > (uint64_t)(t[i].data - t[i - 1].data))
            return error_set(err, -EBADMSG, "tensor '%s': overlaps '%s'", t[i].name, t[i - 1].name);
    qsort(t, g->n_tensors, sizeof *t, by_name);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (!strcmp(t[i - 1].name, t[i].name))
            return error_set(err, -EBADMSG, "tensor '%s': occurs twice", t[i].name);
    return 0;
}

static int parse_tensors(struct gguf *g, struct cursor *c, const uint8_t *start, uint64_t n,
                         struct error *err) {
    if (n > MAX_TENSORS || n > (uint64_t)(c->end - c->at) / MIN_TENSOR_BYTES)
        return error_set(err, -EBADMSG, "tensors: a count of %" PRIu64 " does not fit the file", n);
    uint64_t align = 0;
    int r = parse_alignment(&align, g, err);
    if (r < 0) return r;
    g->tensors = calloc(n ? (size_t)n : 1, sizeof *g->tensors);
    uint64_t *offsets = calloc(n ? (size_t)n : 1, sizeof *offsets);
    if (!g->tensors || !offsets) {
        r = error_set(err, -ENOMEM, "tensors: out of memory");
        goto out;
    }
    for (; g->n_tensors < n && !r; g->n_tensors++)
        r = parse_tensor(&offsets[g->n_tensors], &g->tensors[g->n_tensors], c, err);
    uint64_t used = (uint64_t)(c->at - start), left = (uint64_t)(c->end - c->at);
    uint64_t padding = (align - used % align) % align;
    if (padding > left) padding = left;
    for (size_t i = 0; i < n && !r; i++)
        r = place_tensor(&g->tensors[i], offsets[i], align, c->at + padding, left - padding, err);
    if (!r) r = check_tensors(g, err);
out:
    free(offsets);
    return r;
}

static int parse(struct gguf *g, const uint8_t *bytes, size_t n, struct error *err) {
    struct cursor c = {bytes, bytes + n, false};
    if (memcmp(take(&c, 4), "GGUF", 4) != 0)
        return error_set(err, -EBADMSG, "magic: the file does not begin with 'GGUF'");
    uint32_t version = take_u32(&c);
    uint64_t n_tensors = take_u64(&c), n_pairs = take_u64(&c);
    if (c.failed) return error_set(err, -EBADMSG, "header: the file ends after %zu bytes", n);
    if (version == 0x02000000 || version == 0x03000000)
        return error_set(err, -ENOTSUP, "version: a big-endian file");
    if (version != 2 && version != 3)
        return error_set(err, -ENOTSUP, "version %" PRIu32 ": 2 and 3 are supported", version);
    int r = parse_pairs(g, &c, n_pairs, err);
    if (!r) r = parse_tensors(g, &c, bytes, n_tensors, err);
    return r;
}

int gguf_parse(struct gguf *ret, const void *bytes, size_t n, struct error *err) {
    struct gguf g = {0};
    map_wrap(&g.map, bytes, n);
    int r = parse(&g, g.map.bytes, n, err);
    if (r < 0)
        gguf_close(&g);
    else
        *ret = g;
    return r;
}

int gguf_open(struct gguf *ret, const char *path, struct error *err) {
    struct map map;
    int r = map_open(&map, path, err);
    if (r < 0) return r;
    struct gguf g;
    r = gguf_parse(&g, map.bytes, map.size, err);
    if (r < 0) {
        map_close(&map);
        return error_prefix(err, r, "%s", path);
    }
    g.map = map;
    *ret = g;
    return 0;
}

void gguf_close(struct gguf *g) {
    free(g->pairs);
    free(g->tensors);
    map_close(&g->map);
    *g = (struct gguf){0};
}

const struct gguf_pair *gguf_find(const struct gguf *g, const char *key) {
    struct gguf_pair k = {.key = {key, strlen(key)}};
    return bsearch(&k, g->pairs, g->n_pairs, sizeof *g->pairs, by_key);
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name) {
    struct gguf_tensor k = {0};
    size_t n = strlen(name);
    if (n > GGUF_MAX_NAME) return NULL;
    memcpy(k.name, name, n);
    return bsearch(&k, g->tensors, g->n_tensors, sizeof *g->tensors, by_name);
}

/* Kind of the elements, of which a scalar is one. */
static uint32_t element_kind(const struct gguf_pair *pair) {
    return pair->kind == GGUF_KIND_ARRAY ? pair->element : pair->kind;
}

bool gguf_get_int(int64_t *ret, const struct gguf_pair *pair, uint64_t i) {
    uint32_t kind = element_kind(pair);
    int size = kind_size(kind);
    if (!size || i >= pair->n) return false;
    uint64_t v = load(pair->at + i * (uint64_t)size, size);
    switch (kind) {
    case GGUF_KIND_I8:
        *ret = (int8_t)v;
        return true;
    case GGUF_KIND_I16:
        *ret = (int16_t)v;
        return true;
    case GGUF_KIND_I32:
        *ret = (int32_t)v;
        return true;
    case GGUF_KIND_I64:
        *ret = (int64_t)v;
        return true;
    case GGUF_KIND_U8:
    case GGUF_KIND_U16:
    case GGUF_KIND_U32:
    case GGUF_KIND_U64:
        if (v > INT64_MAX) return false;
        *ret = (int64_t)v;
        return true;
    default:
        return false;
    }
}

bool gguf_get_real(double *ret, const struct gguf_pair *pair, uint64_t i) {
    uint32_t kind = element_kind(pair);
    if (i >= pair->n) return false;
    if (kind == GGUF_KIND_F32) {
        *ret = (double)float_from_bits((uint32_t)load(pair->at + 4 * i, 4));
        return true;
    }
    if (kind != GGUF_KIND_F64) return false;
    uint64_t v = load(pair->at + 8 * i, 8);
    memcpy(ret, &v, sizeof v);
    return true;
}

bool gguf_get_bool(bool *ret, const struct gguf_pair *pair) {
    if (pair->kind != GGUF_KIND_BOOL) return false;
    *ret = *pair->at != 0;
    return true;
}

bool gguf_get_text(struct gguf_text *ret, const struct gguf_pair *pair) {
    return pair->kind == GGUF_KIND_STRING && gguf_get_texts(ret, pair);
}

bool gguf_get_texts(struct gguf_text *ret, const struct gguf_pair *pair) {
    if (element_kind(pair) != GGUF_KIND_STRING) return false;
    const uint8_t *at = pair->at;
    for (uint64_t i = 0; i < pair->n; i++) {
        size_t n = (size_t)load(at, 8);
        ret[i] = (struct gguf_text){(const char *)at + 8, n};
        at += 8 + n;
    }
    return true;
}
