#include "engine/quant/merge.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/json_guard.h"
#include "engine/map.h"
#include "engine/quant/parts.h"
#include "engine/quant/quantize.h"
#include "engine/quant/shard.h"
#include "engine/quant/summary.h"
#include "engine/safetensors.h"
#include "kernels/error.h"

enum { MAX_PARTS = 1 << 16, PATH_SIZE = 4096, NAME_SIZE = 192 };

static const char errors_file[] = "layer_errors.json";
static const char index_file[] = "model.safetensors.index.json";

struct part {
    const char *path;
    struct shard range;
    json_t *config; /* of the model, with quantization_config but without "shard" */
    json_t *shard;  /* what "shard" was */
    json_t *errors; /* layer_errors.json */
    struct safetensors *files;
    int n_files;
};

struct merge {
    struct part *parts; /* by rising range once they are checked */
    int n_parts;
    struct checkpoint_writer *writer;
    json_t *errors;
    struct quantize_summary summary;
};

static int join(char dst[PATH_SIZE], const struct part *p, const char *name, struct error *err) {
    if (snprintf(dst, PATH_SIZE, "%s/%s", p->path, name) < PATH_SIZE) return 0;
    return error_set(err, -ENAMETOOLONG, "%.100s...: the path is too long", p->path);
}

static int read_json(json_t **ret, const struct part *p, const char *name, struct error *err) {
    static const struct json_guard_limits limits = {.max_depth = 16, .max_items = 1u << 18};
    char path[PATH_SIZE];
    struct map map;
    int r = join(path, p, name, err);
    if (r == 0) r = map_open(&map, path, err);
    if (r < 0) return r;
    r = json_guard_parse(ret, map.bytes, map.size, &limits, path, err);
    map_close(&map);
    return r;
}

static const json_t *quantization(const struct part *p) {
    return json_object_get(p->config, "quantization_config");
}

static int range_value(const struct part *p, const char *key) {
    const json_t *value = json_object_get(p->shard, key);
    json_int_t n = json_integer_value(value);
    return json_is_integer(value) && n >= 0 && n <= MAX_PARTS ? (int)n : -1;
}

/* The two files that say what a part is. */
static int read_texts(struct part *p, struct error *err) {
    int r = read_json(&p->config, p, "config.json", err);
    if (r < 0) return r;
    json_t *q = json_object_get(p->config, "quantization_config");
    p->shard = json_incref(json_object_get(q, "shard"));
    if (!json_is_object(p->shard))
        return error_set(err, -EBADMSG,
                         "%s: is no part of a checkpoint: its config.json has no "
                         "quantization_config.shard, which --layers writes",
                         p->path);
    json_object_del(q, "shard");
    p->range =
        (struct shard){range_value(p, "first"), range_value(p, "end"), range_value(p, "blocks")};
    r = shard_check(&p->range, err);
    if (r < 0) return error_prefix(err, -EBADMSG, "%s: config.json: shard", p->path);
    r = read_json(&p->errors, p, errors_file, err);
    if (r == 0 && !json_is_object(p->errors))
        r = error_set(err, -EBADMSG, "%s: %s: is not an object", p->path, errors_file);
    return r;
}

static int open_file(struct part *p, const char *name, struct error *err) {
    char path[PATH_SIZE];
    int r = join(path, p, name, err);
    if (r == 0) r = safetensors_open(&p->files[p->n_files], path, err);
    if (r == 0) p->n_files++;
    return r;
}

static int make_files(struct part *p, int n, struct error *err) {
    p->files = calloc(n ? (size_t)n : 1, sizeof *p->files);
    return p->files ? 0 : error_set(err, -ENOMEM, "%s: out of memory", p->path);
}

static int open_indexed(struct part *p, const struct map *text, struct error *err) {
    struct safetensors_index index = {0};
    int r = safetensors_index_parse(&index, text->bytes, text->size, err);
    if (r < 0) return error_prefix(err, r, "%s", p->path);
    r = make_files(p, index.n_files, err);
    for (int i = 0; r == 0 && i < index.n_files; i++) r = open_file(p, index.files[i], err);
    safetensors_index_free(&index);
    return r;
}

static int open_tensors(struct part *p, struct error *err) {
    char path[PATH_SIZE];
    struct map map;
    int r = join(path, p, index_file, err);
    if (r < 0) return r;
    if (map_open(&map, path, NULL) == 0) {
        r = open_indexed(p, &map, err);
        map_close(&map);
        return r;
    }
    r = make_files(p, 1, err);
    return r == 0 ? open_file(p, "model.safetensors", err) : r;
}

static const struct safetensors_tensor *find(const struct part *p, const char *name) {
    const struct safetensors_tensor *t = NULL;
    for (int i = 0; !t && i < p->n_files; i++) t = safetensors_find(&p->files[i], name);
    return t;
}

static void close_part(struct part *p) {
    for (int i = 0; i < p->n_files; i++) safetensors_close(&p->files[i]);
    free(p->files);
    json_decref(p->config);
    json_decref(p->shard);
    json_decref(p->errors);
}

/* Names the first key that tells a and b apart, NULL when they are equal. */
static const char *difference(json_t *a, json_t *b) {
    const char *key;
    json_t *value;
    json_object_foreach(a, key, value) if (!json_equal(value, json_object_get(b, key))) return key;
    json_object_foreach(b, key, value) if (!json_object_get(a, key)) return key;
    return NULL;
}

static int mismatch(const struct part *a, const struct part *b, const char *key,
                    struct error *err) {
    return error_set(err, -EINVAL, "%s and %s were made with different settings or sources: '%s'",
                     a->path, b->path, key);
}

static int check_same(const struct part *a, const struct part *b, struct error *err) {
    static const char *const identity[] = {"model", "text", "version", "blocks"};
    for (size_t i = 0; i < sizeof identity / sizeof *identity; i++)
        if (!json_equal(json_object_get(a->shard, identity[i]),
                        json_object_get(b->shard, identity[i])))
            return mismatch(a, b, identity[i], err);
    json_t *x = (json_t *)(uintptr_t)quantization(a), *y = (json_t *)(uintptr_t)quantization(b);
    const char *key = difference(x, y);
    if (!key) key = difference(a->config, b->config);
    return key ? mismatch(a, b, key, err) : 0;
}

static int by_range(const void *a, const void *b) {
    const struct part *x = a, *y = b;
    if (x->range.first != y->range.first) return x->range.first - y->range.first;
    return x->range.end - y->range.end;
}

/* Every block is there once. Parts are sorted. */
static int check_cover(const struct merge *m, struct error *err) {
    int next = 0, n_layers = m->parts[0].range.n_layers;
    for (int i = 0; i < m->n_parts; i++) {
        const struct part *p = &m->parts[i];
        if (p->range.first < next)
            return error_set(err, -EINVAL, "%s and %s both have block %d", m->parts[i - 1].path,
                             p->path, p->range.first);
        if (p->range.first > next)
            return error_set(err, -EINVAL, "blocks %d:%d are in no part (the next is %s)", next,
                             p->range.first, p->path);
        next = p->range.end;
    }
    if (next < n_layers)
        return error_set(err, -EINVAL, "blocks %d:%d are in no part", next, n_layers);
    return 0;
}

static int open_parts(struct merge *m, const char *const *paths, struct error *err) {
    m->parts = calloc((size_t)m->n_parts, sizeof *m->parts);
    if (!m->parts) return error_set(err, -ENOMEM, "merge: out of memory");
    int r = 0;
    for (int i = 0; r == 0 && i < m->n_parts; i++) {
        m->parts[i].path = paths[i];
        r = read_texts(&m->parts[i], err);
        if (r == 0) r = open_tensors(&m->parts[i], err);
        if (r == 0 && i > 0) r = check_same(&m->parts[0], &m->parts[i], err);
    }
    if (r < 0) return r;
    qsort(m->parts, (size_t)m->n_parts, sizeof *m->parts, by_range);
    return check_cover(m, err);
}

static int role_of(const char *name) {
    for (int role = 0; role < ROLE_COUNT; role++)
        if (!strcmp(quantize_role_name((enum model_role)role), name ? name : "")) return role;
    return -1;
}

static int count_matrix(struct merge *m, const struct part *p, const json_t *matrix, int role,
                        struct error *err) {
    const char *name = json_string_value(json_object_get(matrix, "name"));
    char coded[NAME_SIZE];
    struct bcq_view view;
    const json_t *entry = name ? json_object_get(p->errors, name) : NULL;
    snprintf(coded, sizeof coded, "%.180s.bcq", name ? name : "?");
    const struct safetensors_tensor *t = find(p, coded);
    if (!entry || !t)
        return error_set(err, -EBADMSG, "%s: tensor '%s' or its entry in %s is missing", p->path,
                         coded, errors_file);
    struct packed_view packed;
    int r = parts_read_block(&view, &packed, t->data, (size_t)t->n_bytes, err);
    packed_close(&packed);
    if (r < 0) return error_prefix(err, r, "%s: tensor '%s'", p->path, coded);
    summary_add(&m->summary, (enum model_role)role, (int64_t)view.spec.rows * view.spec.cols,
                entry);
    return 0;
}

/* Roles outside, as in a run over all blocks. */
static int count_matrices(struct merge *m, struct error *err) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        int count = 0;
        for (int i = 0; i < m->n_parts; i++) {
            const json_t *list = json_object_get(m->parts[i].shard, "matrices"), *matrix;
            size_t k;
            json_array_foreach(list, k, matrix) {
                const char *name = json_string_value(json_object_get(matrix, "role"));
                if (role_of(name) != role) continue;
                int r = count_matrix(m, &m->parts[i], matrix, role, err);
                if (r < 0) return r;
                count++;
            }
        }
        if (count != 0 && count != m->summary.n_layers)
            return error_set(err, -EBADMSG, "%d matrices '%s' are listed for %d blocks", count,
                             quantize_role_name((enum model_role)role), m->summary.n_layers);
    }
    if (m->summary.n_weights == 0) return error_set(err, -EBADMSG, "no part lists a matrix");
    summary_end(&m->summary);
    return 0;
}

/* Text that a partial merge is known by: of other parts or settings it is begun anew. */
static int open_writer(struct merge *m, const char *out, bool force, struct error *err) {
    json_t *list = json_array();
    for (int i = 0; i < m->n_parts; i++) json_array_append(list, m->parts[i].shard);
    json_t *o = json_pack("{s:O, s:o}", "merge", quantization(&m->parts[0]), "parts", list);
    char *settings = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    json_decref(o);
    if (!settings) return error_set(err, -ENOMEM, "settings: out of memory");
    struct checkpoint_writer_options options = {.settings = settings, .force = force};
    int r = checkpoint_writer_open(&m->writer, out, &options, err);
    free(settings);
    return r;
}

static int copy_tensors(struct merge *m, const struct part *p, struct error *err) {
    for (int i = 0; i < p->n_files; i++) {
        for (size_t k = 0; k < p->files[i].n_tensors; k++) {
            const struct safetensors_tensor *t = &p->files[i].tensors[k];
            if (!shard_owns(&p->range, t->name))
                return error_set(err, -EBADMSG, "%s: tensor '%.100s': is of another part's blocks",
                                 p->path, t->name);
            int r = checkpoint_writer_add(m->writer, t, err);
            if (r < 0) return error_prefix(err, r, "%s", p->path);
        }
    }
    return json_object_update(m->errors, p->errors) < 0
               ? error_set(err, -ENOMEM, "errors: out of memory")
               : 0;
}

static bool is_made_here(const char *name) {
    size_t n = strlen(name);
    return *name == '.' || !strcmp(name, "config.json") || !strcmp(name, errors_file) ||
           !strcmp(name, index_file) || (n > 12 && !strcmp(name + n - 12, ".safetensors"));
}

/* A text that all parts share, from the first. */
static int copy_text(struct merge *m, const char *name, struct error *err) {
    char path[PATH_SIZE];
    struct map first, other;
    int r = join(path, &m->parts[0], name, err);
    if (r == 0) r = map_open(&first, path, err);
    if (r < 0) return r;
    for (int i = 1; r == 0 && i < m->n_parts; i++) {
        r = join(path, &m->parts[i], name, err);
        if (r == 0) r = map_open(&other, path, err);
        if (r < 0) break;
        if (other.size != first.size || memcmp(other.bytes, first.bytes, first.size) != 0)
            r = mismatch(&m->parts[0], &m->parts[i], name, err);
        map_close(&other);
    }
    if (r == 0) r = checkpoint_writer_add_file(m->writer, name, first.bytes, first.size, err);
    map_close(&first);
    return r;
}

static int copy_texts(struct merge *m, struct error *err) {
    DIR *dir = opendir(m->parts[0].path);
    if (!dir) return error_set(err, -errno, "%s: %s", m->parts[0].path, strerror(errno));
    int r = 0;
    for (const struct dirent *e; r == 0 && (e = readdir(dir));)
        if (!is_made_here(e->d_name)) r = copy_text(m, e->d_name, err);
    closedir(dir);
    return r;
}

static int write_config(struct merge *m, struct error *err) {
    json_t *config = m->parts[0].config, *q = json_object_get(config, "quantization_config");
    summary_describe(q, &m->summary);
    char *text = json_dumps(config, JSON_INDENT(2)), *described = json_dumps(q, JSON_COMPACT);
    char *errors = json_dumps(m->errors, JSON_INDENT(1) | JSON_SORT_KEYS);
    int r = text && described && errors ? 0 : error_set(err, -ENOMEM, "config: out of memory");
    if (r == 0) r = checkpoint_writer_add_config(m->writer, text, strlen(text), described, err);
    if (r == 0) r = checkpoint_writer_add_file(m->writer, errors_file, errors, strlen(errors), err);
    free(text);
    free(described);
    free(errors);
    return r;
}

static void read_calibration(struct merge *m) {
    const json_t *q = quantization(&m->parts[0]), *c = json_object_get(q, "calibration");
    const char *text = json_string_value(json_object_get(c, "text"));
    m->summary.n_layers = m->parts[0].range.n_layers;
    m->summary.windows = (int)json_integer_value(json_object_get(c, "windows"));
    m->summary.ctx = (int)json_integer_value(json_object_get(c, "ctx"));
    m->summary.own_text = text && strcmp(text, "file") != 0;
}

int merge_parts(struct quantize_summary *ret, const char *out, const char *const *parts,
                int n_parts, bool force, struct error *err) {
    struct merge m = {.n_parts = n_parts};
    if (n_parts < 1 || n_parts > MAX_PARTS)
        return error_set(err, -EINVAL, "merge: %d parts are not in 1..%d", n_parts, MAX_PARTS);
    for (int i = 0; i < n_parts; i++)
        if (!strcmp(parts[i], out))
            return error_set(err, -EINVAL, "%s: is a part and cannot be the result", out);
    m.errors = json_object();
    int r = m.errors ? open_parts(&m, parts, err) : error_set(err, -ENOMEM, "out of memory");
    if (r == 0) {
        read_calibration(&m);
        r = count_matrices(&m, err);
    }
    if (r == 0) r = open_writer(&m, out, force, err);
    for (int i = 0; r == 0 && i < n_parts; i++) r = copy_tensors(&m, &m.parts[i], err);
    if (r == 0) r = copy_texts(&m, err);
    if (r == 0) r = write_config(&m, err);
    if (r == 0) r = checkpoint_writer_finish(m.writer, err);
    if (r == 0) *ret = m.summary;
    for (int i = 0; m.parts && i < n_parts; i++) close_part(&m.parts[i]);
    checkpoint_writer_close(m.writer);
    json_decref(m.errors);
    free(m.parts);
    return r;
}
