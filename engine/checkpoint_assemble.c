#include "engine/checkpoint_assemble.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/atomic_file.h"
#include "engine/safetensors.h"
#include "kernels/error.h"

struct parts {
    struct safetensors *files;          /* (n) one tensor each, sorted by its name */
    struct safetensors_tensor *tensors; /* (n) the same tensors */
    size_t n, room;
};

static int out_of_memory(struct error *err) {
    return error_set(err, -ENOMEM, "checkpoint: out of memory");
}

static void free_parts(struct parts *p) {
    for (size_t i = 0; i < p->n; i++) safetensors_close(&p->files[i]);
    free(p->files);
    free(p->tensors);
}

static int add_part(struct parts *p, const char *folder, const char *name, struct error *err) {
    if (p->n == p->room) {
        size_t room = p->room ? 2 * p->room : 256;
        struct safetensors *files = realloc(p->files, room * sizeof *files);
        if (!files) return out_of_memory(err);
        p->files = files;
        p->room = room;
    }
    size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    if (!path) return out_of_memory(err);
    snprintf(path, size, "%s/%s", folder, name);
    struct safetensors st;
    int r = safetensors_open(&st, path, err);
    if (!r && (st.n_tensors != 1 || strcmp(st.tensors[0].name, name) != 0)) {
        safetensors_close(&st);
        r = error_set(err, -EBADMSG, "%s: does not hold the tensor of its name", path);
    }
    if (!r) p->files[p->n++] = st;
    free(path);
    return r;
}

static int by_name(const void *a, const void *b) {
    const struct safetensors *x = a, *y = b;
    return strcmp(x->tensors[0].name, y->tensors[0].name);
}

/* What a killed writer left half-written is passed over. */
static int open_parts(struct parts *p, const char *folder, struct error *err) {
    DIR *dir = opendir(folder);
    if (!dir) return error_set(err, -errno, "%s: %s", folder, strerror(errno));
    int r = 0;
    for (const struct dirent *e; !r && (e = readdir(dir));)
        if (*e->d_name != '.' && !atomic_file_is_temporary(e->d_name))
            r = add_part(p, folder, e->d_name, err);
    closedir(dir);
    if (r < 0) return r;
    p->tensors = calloc(p->n ? p->n : 1, sizeof *p->tensors);
    if (!p->tensors) return out_of_memory(err);
    if (p->n) qsort(p->files, p->n, sizeof *p->files, by_name);
    for (size_t i = 0; i < p->n; i++) p->tensors[i] = p->files[i].tensors[0];
    return 0;
}

/* End of the shard that begins at first: as many tensors as fit, at least one. */
static size_t shard_end(const struct parts *p, size_t first, uint64_t limit) {
    uint64_t bytes = 0;
    size_t i = first;
    for (; i < p->n; i++) {
        if (i > first && bytes + p->tensors[i].n_bytes > limit) break;
        bytes += p->tensors[i].n_bytes;
    }
    return i;
}

static int write_shard(const struct parts *p, const char *out, size_t first, size_t end,
                       const char *name, struct error *err) {
    size_t n = strlen(out) + strlen(name) + 2;
    char *path = malloc(n);
    if (!path) return out_of_memory(err);
    snprintf(path, n, "%s/%s", out, name);
    int r = safetensors_write(path, p->tensors + first, end - first, err);
    for (size_t i = first; i < end; i++) map_release(&p->files[i].map, 0, SIZE_MAX);
    free(path);
    return r;
}

enum { SHARD_NAME = 48 };

static void shard_name(char name[SHARD_NAME], int i, int n) {
    if (n > 1)
        snprintf(name, SHARD_NAME, "model-%05d-of-%05d.safetensors", i + 1, n);
    else
        snprintf(name, SHARD_NAME, "model.safetensors");
}

/* Names are plain (checkpoint_writer has seen to it) and need no escapes. */
static void print_index(FILE *f, const struct parts *p, uint64_t limit, int n_shards) {
    uint64_t total = 0;
    char name[SHARD_NAME];
    for (size_t i = 0; i < p->n; i++) total += p->tensors[i].n_bytes;
    fprintf(f, "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n  \"weight_map\": {",
            total);
    size_t at = 0;
    for (int shard = 0; shard < n_shards; shard++) {
        size_t end = shard_end(p, at, limit);
        shard_name(name, shard, n_shards);
        for (; at < end; at++)
            fprintf(f, "%s\n    \"%s\": \"%s\"", at ? "," : "", p->tensors[at].name, name);
    }
    fputs("\n  }\n}\n", f);
}

static int write_index(const struct parts *p, const char *out, uint64_t limit, int n_shards,
                       struct error *err) {
    char *text = NULL, *path = NULL;
    size_t size = 0, n = strlen(out) + 64;
    FILE *f = open_memstream(&text, &size);
    if (!f) return out_of_memory(err);
    print_index(f, p, limit, n_shards);
    int bad = ferror(f);
    bad |= fclose(f);
    path = malloc(n);
    if (path) snprintf(path, n, "%s/model.safetensors.index.json", out);
    int r = bad || !path ? out_of_memory(err) : atomic_file_save(path, text, size, err);
    free(path);
    free(text);
    return r;
}

static int write_shards(const struct parts *p, const char *out, uint64_t limit, struct error *err) {
    int n_shards = 0, r = 0;
    for (size_t at = 0; at < p->n; n_shards++) at = shard_end(p, at, limit);
    if (n_shards > 99999) return error_set(err, -EINVAL, "%s: more than 99999 files", out);
    size_t first = 0;
    char name[SHARD_NAME];
    for (int i = 0; !r && i < n_shards; i++) {
        size_t end = shard_end(p, first, limit);
        shard_name(name, i, n_shards);
        r = write_shard(p, out, first, end, name, err);
        first = end;
    }
    if (!r && n_shards > 1) r = write_index(p, out, limit, n_shards, err);
    return r;
}

int checkpoint_assemble(const char *parts, const char *out, uint64_t shard_bytes,
                        struct error *err) {
    struct parts p = {0};
    int r = open_parts(&p, parts, err);
    if (!r && !p.n) r = error_set(err, -EINVAL, "%s: no tensors were added", parts);
    if (!r) r = write_shards(&p, out, shard_bytes, err);
    free_parts(&p);
    return r;
}
