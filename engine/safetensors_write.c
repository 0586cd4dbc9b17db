#include "engine/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/atomic_file.h"
#include "kernels/error.h"

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n > m && !strcmp(name + n - m, end);
}

/* Bytes that the place of a tensor must be a multiple of. */
static size_t alignment(const struct safetensors_tensor *t) {
    if (t->type == SAFETENSORS_U8 &&
        (ends_with(t->name, ".bcq") || ends_with(t->name, ".outliers") ||
         ends_with(t->name, ".rotation")))
        return SAFETENSORS_ALIGN;
    return safetensors_type_size(t->type);
}

static void put_string(FILE *out, const char *s) {
    putc('"', out);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            fprintf(out, "\\%c", *s);
        else if ((unsigned char)*s < ' ')
            fprintf(out, "\\u%04x", (unsigned)*s);
        else
            putc(*s, out);
    }
    putc('"', out);
}

static void put_tensor(FILE *out, const struct safetensors_tensor *t, uint64_t begin) {
    putc(',', out);
    put_string(out, t->name);
    fprintf(out, ":{\"dtype\":\"%s\",\"shape\":[", safetensors_type_name(t->type));
    for (int i = 0; i < t->n_dims; i++) fprintf(out, i ? ",%" PRIu64 : "%" PRIu64, t->shape[i]);
    fprintf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, begin + t->n_bytes);
}

/* Lists the tensors in the order of the file; every size is a multiple of its own alignment, so
 * falling alignments keep each tensor aligned without holes. */
static const struct safetensors_tensor **arrange(const struct safetensors_tensor *tensors,
                                                 size_t n) {
    const struct safetensors_tensor **order = calloc(n ? n : 1, sizeof *order);
    if (!order) return NULL;
    size_t at = 0;
    for (size_t a = SAFETENSORS_ALIGN; a; a /= 2)
        for (size_t i = 0; i < n; i++)
            if (alignment(&tensors[i]) == a) order[at++] = &tensors[i];
    return order;
}

static int check(const struct safetensors_tensor *t, struct error *err) {
    uint64_t bytes = safetensors_type_size(t->type);
    for (int i = 0; i < t->n_dims; i++) {
        if (t->shape[i] && bytes > UINT64_MAX / t->shape[i])
            return error_set(err, -EINVAL, "tensor '%.100s': shape overflows 64 bits", t->name);
        bytes *= t->shape[i];
    }
    if (bytes != t->n_bytes || bytes % alignment(t))
        return error_set(err, -EINVAL, "tensor '%.100s': %" PRIu64 " bytes do not fit its shape",
                         t->name, t->n_bytes);
    return 0;
}

/* The first 8 bytes and the JSON, padded with spaces. */
static int header(char **ret, size_t *ret_n, const struct safetensors_tensor **order, size_t n,
                  struct error *err) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return error_set(err, -ENOMEM, "out of memory");
    fputs("        {\"__metadata__\":{\"format\":\"pt\"}", out);
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        put_tensor(out, order[i], at);
        at += order[i]->n_bytes;
    }
    putc('}', out);
    for (long end = ftell(out); end % SAFETENSORS_ALIGN; end++) putc(' ', out);
    int failed = ferror(out);
    if (fclose(out) || failed) {
        free(text);
        return error_set(err, -ENOMEM, "out of memory");
    }
    for (int i = 0; i < 8; i++) text[i] = (char)((uint64_t)(size - 8) >> 8 * i & 255);
    *ret = text;
    *ret_n = size;
    return 0;
}

static int write_all(const char *path, const char *head, size_t n_head,
                     const struct safetensors_tensor **order, size_t n, struct error *err) {
    struct atomic_file file;
    int r = atomic_file_open(&file, path, err);
    if (r < 0) return r;
    r = atomic_file_write(&file, head, n_head, err);
    for (size_t i = 0; i < n && !r; i++)
        r = atomic_file_write(&file, order[i]->data, (size_t)order[i]->n_bytes, err);
    if (!r) return atomic_file_commit(&file, err);
    atomic_file_close(&file);
    return r;
}

int safetensors_write(const char *path, const struct safetensors_tensor *tensors, size_t n,
                      struct error *err) {
    for (size_t i = 0; i < n; i++) {
        int r = check(&tensors[i], err);
        if (r < 0) return error_prefix(err, r, "%s", path);
    }
    const struct safetensors_tensor **order = arrange(tensors, n);
    if (!order) return error_set(err, -ENOMEM, "%s: out of memory", path);
    char *head = NULL;
    size_t n_head = 0;
    int r = header(&head, &n_head, order, n, err);
    if (!r) r = write_all(path, head, n_head, order, n, err);
    free(head);
    free(order);
    return r;
}
