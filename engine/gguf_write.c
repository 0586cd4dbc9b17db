#include "engine/gguf_write.h"

#include <errno.h>
#include <string.h>

#include "engine/gguf.h"
#include "engine/gguf_quants.h"
#include "kernels/error.h"

enum { VERSION = 3, ALIGN = 32 /* the format's default, which needs no key */ };

static uint64_t up(uint64_t n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }

static void put(struct gguf_write *w, struct buf *to, const void *bytes, size_t n) {
    if (w->status == 0) w->status = buf_append(to, bytes, n);
}

/* The n low bytes, least first, whatever the machine's order. */
static void put_number(struct gguf_write *w, struct buf *to, uint64_t value, int n) {
    uint8_t bytes[8];
    for (int i = 0; i < n; i++) bytes[i] = (uint8_t)(value >> 8 * i);
    put(w, to, bytes, (size_t)n);
}

static void put_string(struct gguf_write *w, struct buf *to, const char *text, size_t n) {
    put_number(w, to, n, 8);
    put(w, to, text, n);
}

static void put_key(struct gguf_write *w, const char *key, enum gguf_kind kind) {
    put_string(w, &w->pairs, key, strlen(key));
    put_number(w, &w->pairs, kind, 4);
    w->n_pairs++;
}

static void put_array(struct gguf_write *w, const char *key, enum gguf_kind kind, size_t n) {
    put_key(w, key, GGUF_KIND_ARRAY);
    put_number(w, &w->pairs, kind, 4);
    put_number(w, &w->pairs, n, 8);
}

void gguf_write_text(struct gguf_write *w, const char *key, const char *text, size_t n) {
    put_key(w, key, GGUF_KIND_STRING);
    put_string(w, &w->pairs, text, n);
}

void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t value) {
    put_key(w, key, GGUF_KIND_U32);
    put_number(w, &w->pairs, value, 4);
}

void gguf_write_f32(struct gguf_write *w, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(w, key, GGUF_KIND_F32);
    put_number(w, &w->pairs, bits, 4);
}

void gguf_write_bool(struct gguf_write *w, const char *key, bool value) {
    put_key(w, key, GGUF_KIND_BOOL);
    put_number(w, &w->pairs, value, 1);
}

void gguf_write_i32s(struct gguf_write *w, const char *key, const int32_t *values, size_t n) {
    put_array(w, key, GGUF_KIND_I32, n);
    for (size_t i = 0; i < n; i++) put_number(w, &w->pairs, (uint32_t)values[i], 4);
}

void gguf_write_texts(struct gguf_write *w, const char *key, size_t n) {
    put_array(w, key, GGUF_KIND_STRING, n);
}

void gguf_write_element(struct gguf_write *w, const char *text, size_t n) {
    put_string(w, &w->pairs, text, n);
}

void gguf_write_tensor(struct gguf_write *w, const char *name, const struct gguf_quants_type *type,
                       int n_dims, const uint64_t *dims) {
    uint64_t n_bytes = (uint64_t)type->n_bytes;
    put_string(w, &w->tensors, name, strlen(name));
    put_number(w, &w->tensors, (uint64_t)n_dims, 4);
    for (int i = 0; i < n_dims; i++) {
        put_number(w, &w->tensors, dims[i], 8);
        n_bytes *= i ? dims[i] : dims[i] / (uint64_t)type->block;
    }
    put_number(w, &w->tensors, type->type, 4);
    put_number(w, &w->tensors, w->declared, 8);
    w->n_tensors++;
    w->declared += up(n_bytes);
}

int gguf_write_begin(struct gguf_write *w, const char *path, struct error *err) {
    static const char zeros[ALIGN];
    struct buf head = {0};
    put(w, &head, "GGUF", 4);
    put_number(w, &head, VERSION, 4);
    put_number(w, &head, w->n_tensors, 8);
    put_number(w, &head, w->n_pairs, 8);
    uint64_t n = (uint64_t)head.len + w->pairs.len + w->tensors.len;
    put(w, &w->tensors, zeros, (size_t)(up(n) - n));
    int r = w->status < 0 ? error_set(err, w->status, "%s: out of memory", path) : 0;
    if (r == 0) r = atomic_file_open(&w->file, path, err);
    if (r == 0) r = atomic_file_write(&w->file, head.data, head.len, err);
    if (r == 0) r = atomic_file_write(&w->file, w->pairs.data, w->pairs.len, err);
    if (r == 0) r = atomic_file_write(&w->file, w->tensors.data, w->tensors.len, err);
    buf_free(&head);
    return r;
}

int gguf_write_data(struct gguf_write *w, const void *bytes, size_t n, struct error *err) {
    if (n > w->declared - w->written)
        return error_set(err, -EINVAL, "%s: more data than were declared", w->file.path);
    w->written += n;
    return atomic_file_write(&w->file, bytes, n, err);
}

int gguf_write_end(struct gguf_write *w, struct error *err) {
    static const char zeros[ALIGN];
    return gguf_write_data(w, zeros, (size_t)(up(w->written) - w->written), err);
}

int gguf_write_commit(struct gguf_write *w, struct error *err) {
    if (w->written != w->declared)
        return error_set(err, -EINVAL, "%s: fewer data than were declared", w->file.path);
    return atomic_file_commit(&w->file, err);
}

void gguf_write_close(struct gguf_write *w) {
    atomic_file_close(&w->file);
    buf_free(&w->pairs);
    buf_free(&w->tensors);
}
