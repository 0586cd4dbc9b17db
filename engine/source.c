#include "engine/source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/gguf_llama.h"
#include "engine/source_open.h"
#include "kernels/error.h"
#include "kernels/expand.h"

static int open_source(struct source **ret, const char *path, const struct source_file *files,
                       int n_files, struct error *err) {
    struct source *src = calloc(1, sizeof *src);
    if (!src) return error_set(err, -ENOMEM, "model: out of memory");
    src->path = path;
    src->files = files;
    src->n_files = n_files;
    int r = source_open_all(src, err);
    src->path = NULL;
    src->files = NULL;
    if (r < 0)
        source_close(src);
    else
        *ret = src;
    return r;
}

int source_open(struct source **ret, const char *path, struct error *err) {
    return open_source(ret, path, NULL, 0, err);
}

int source_open_memory(struct source **ret, const struct source_file *files, int n,
                       struct error *err) {
    return open_source(ret, NULL, files, n, err);
}

void source_close(struct source *src) {
    if (!src) return;
    for (int i = 0; i < SOURCE_N_TEXTS; i++) map_close(&src->texts[i]);
    for (int i = 0; i < src->n_shards; i++) safetensors_close(&src->shards[i]);
    gguf_vocab_free(&src->vocab);
    gguf_close(&src->gguf);
    free(src->shards);
    for (size_t i = 0; i < src->n_packed; i++) packed_close(&src->packed[i]);
    free(src->packed);
    free(src->tensors);
    free(src->names);
    free(src);
}

const struct model_config *source_config(const struct source *src) { return &src->config; }

const struct gguf_vocab *source_vocab(const struct source *src) {
    return src->is_gguf ? &src->vocab : NULL;
}

int source_file_text(const struct source *src, const char *name, const char **ret, size_t *ret_n) {
    for (int i = 0; i < SOURCE_N_TEXTS; i++) {
        if (strcmp(name, source_open_texts[i]) != 0 || !src->texts[i].bytes) continue;
        *ret = (const char *)src->texts[i].bytes;
        *ret_n = src->texts[i].size;
        return 0;
    }
    return -ENOENT;
}

static int by_name(const void *key, const void *element) {
    const struct source_tensor *t = element;
    return strcmp(key, t->name);
}

int source_find(const struct source *src, const char *name, struct source_tensor *ret) {
    const struct source_tensor *t =
        bsearch(name, src->tensors, src->n_tensors, sizeof *src->tensors, by_name);
    if (!t) return -ENOENT;
    *ret = *t;
    return 0;
}

size_t source_count(const struct source *src) { return src->n_tensors; }
const struct source_tensor *source_at(const struct source *src, size_t i) {
    return &src->tensors[i];
}

size_t source_bytes(const struct source *src) {
    size_t n = 0;
    for (size_t i = 0; i < src->n_tensors; i++) n += (size_t)src->tensors[i].n_bytes;
    return n;
}

bool source_dense_type(const struct source_tensor *t, enum dtype *ret) {
    static const enum dtype types[] = {
        [SOURCE_F32] = DTYPE_F32, [SOURCE_F16] = DTYPE_F16, [SOURCE_BF16] = DTYPE_BF16};
    if (!t->data || t->kind > SOURCE_BF16) return false;
    *ret = types[t->kind];
    return true;
}

/* A vector whose elements alternate as rows do. */
static int read_turned_vector(const struct source_tensor *t, float *dst, struct error *err) {
    float *stored = malloc((size_t)t->cols * sizeof *stored);
    if (!stored) return error_set(err, -ENOMEM, "tensor '%.100s': out of memory", t->name);
    gguf_quants_row(t->expand, stored, t->stored, t->cols);
    for (int64_t i = 0; i < t->cols; i++) dst[i] = stored[gguf_llama_row(i, t->rope_dim)];
    free(stored);
    return 0;
}

int source_read_rows(const struct source *src, const struct source_tensor *t, int64_t row0,
                     int64_t n_rows, float *dst, struct error *err) {
    (void)src;
    if (row0 < 0 || n_rows < 0 || row0 > t->rows || n_rows > t->rows - row0)
        return error_set(err, -EINVAL, "tensor '%.100s': rows %" PRId64 "+%" PRId64 " of %" PRId64,
                         t->name, row0, n_rows, t->rows);
    if (!t->is_bcq && !t->expand)
        return error_set(err, -ENOTSUP, "tensor '%.100s': %s is not a type of weights", t->name,
                         t->type_name);
    if (!n_rows || !t->cols) return 0;
    if (t->rope_dim && t->n_dims == 1) return read_turned_vector(t, dst, err);
    if (t->is_bcq) {
        struct weight_view view = {
            .is_bcq = 1, .bcq = t->bcq, .outliers = t->outliers, .rotation = t->rotation};
        return weight_expand(&view, (int)row0, (int)n_rows, dst, err);
    }
    size_t stride = (size_t)(t->n_bytes / (uint64_t)t->rows);
    for (int64_t row = row0; row < row0 + n_rows; row++, dst += t->cols) {
        int64_t at = t->rope_dim ? gguf_llama_row(row, t->rope_dim) : row;
        gguf_quants_row(t->expand, dst, t->stored + (size_t)at * stride, t->cols);
    }
    return 0;
}

static const struct map *file_of(const struct source *src, int file) {
    return src->is_gguf ? &src->gguf.map : &src->shards[file].map;
}

void source_release(const struct source *src, const struct source_tensor *t) {
    const struct map *map = file_of(src, t->file);
    map_release(map, (size_t)(t->stored - map->bytes), (size_t)t->n_bytes);
}

void source_hash(const struct source *src, char hex[SHA256_HEX]) {
    enum { CHUNK = 1 << 24 };
    struct sha256 state;
    sha256_init(&state);
    int n = src->is_gguf ? 1 : src->n_shards;
    for (int i = 0; i < n; i++) {
        const struct map *map = file_of(src, i);
        for (size_t at = 0; at < map->size; at += CHUNK) {
            size_t left = map->size - at;
            sha256_add(&state, map->bytes + at, left < CHUNK ? left : CHUNK);
            map_release(map, at, CHUNK);
        }
    }
    sha256_end(&state, hex);
}
