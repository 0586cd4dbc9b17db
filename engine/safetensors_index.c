#include "engine/safetensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json_guard.h"
#include "kernels/error.h"

enum { MAX_FILES = 10000 };

static const struct json_guard_limits limits = {.max_depth = 8, .max_items = 1u << 20};

static bool is_plain(const char *file) {
    return *file && *file != '.' && !strpbrk(file, "/\\") && strlen(file) <= 200;
}

static int by_text(const void *a, const void *b) {
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

static int collect(struct safetensors_index *index, const json_t *map, struct error *err) {
    size_t n = json_object_size(map), n_names = 1;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, key, value) {
        const char *file = json_string_value(value);
        if (!file) return error_set(err, -EBADMSG, "weight_map '%.100s': is not a string", key);
        if (!is_plain(file))
            return error_set(err, -EBADMSG, "weight_map '%.100s': '%.100s' is no plain file name",
                             key, file);
        n_names += strlen(key) + strlen(file) + 2;
    }
    index->places = calloc(n ? n : 1, sizeof *index->places);
    index->files = calloc(n ? n : 1, sizeof *index->files);
    index->names = malloc(n_names);
    if (!index->places || !index->files || !index->names)
        return error_set(err, -ENOMEM, "weight_map: out of memory");
    char *at = index->names;
    json_object_foreach((json_t *)(uintptr_t)map, key, value) {
        size_t i = index->n_places++;
        index->places[i].tensor = strcpy(at, key);
        at += strlen(key) + 1;
        index->files[i] = strcpy(at, json_string_value(value));
        at += strlen(at) + 1;
    }
    return 0;
}

/* Sorts the files and drops repetitions, then writes their numbers into the places. */
static int number_files(struct safetensors_index *index, const json_t *map, struct error *err) {
    size_t n = 0;
    qsort(index->files, index->n_places, sizeof *index->files, by_text);
    for (size_t i = 0; i < index->n_places; i++)
        if (!n || strcmp(index->files[n - 1], index->files[i]) != 0)
            index->files[n++] = index->files[i];
    if (n > MAX_FILES) return error_set(err, -E2BIG, "weight_map: more than %d files", MAX_FILES);
    index->n_files = (int)n;
    for (size_t i = 0; i < index->n_places; i++) {
        const char *file = json_string_value(json_object_get(map, index->places[i].tensor));
        const char **found = bsearch(&file, index->files, n, sizeof *index->files, by_text);
        index->places[i].file = (int)(found - index->files);
    }
    return 0;
}

int safetensors_index_parse(struct safetensors_index *ret, const void *text, size_t n,
                            struct error *err) {
    json_t *root = NULL;
    int r = json_guard_parse(&root, text, n, &limits, "model.safetensors.index.json", err);
    if (r < 0) return r;
    struct safetensors_index index = {0};
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        r = error_set(err, -EBADMSG, "weight_map is not an object");
    } else {
        r = collect(&index, map, err);
        if (!r) r = number_files(&index, map, err);
    }
    json_decref(root);
    if (r < 0) {
        safetensors_index_free(&index);
        return error_prefix(err, r, "model.safetensors.index.json");
    }
    *ret = index;
    return 0;
}

void safetensors_index_free(struct safetensors_index *index) {
    free(index->places);
    free(index->files);
    free(index->names);
    *index = (struct safetensors_index){0};
}
