#include "engine/source_open.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/gguf_llama.h"
#include "kernels/error.h"

const char *const source_open_texts[SOURCE_N_TEXTS] = {
    "config.json",           "generation_config.json",  "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "layer_errors.json",
};
enum { TEXT_CONFIG, TEXT_GENERATION };

static const char outliers_end[] = ".outliers", rotation_end[] = ".rotation";

/* A file of the directory or of the images; -ENOENT when there is none. */
static int open_file(const struct source *src, const char *name, struct map *ret,
                     struct error *err) {
    if (!src->path) {
        for (int i = 0; i < src->n_files; i++)
            if (!strcmp(src->files[i].name, name)) {
                map_wrap(ret, src->files[i].bytes, src->files[i].n);
                return 0;
            }
        return error_set(err, -ENOENT, "%s is not among the files", name);
    }
    size_t n = strlen(src->path) + strlen(name) + 2;
    char *path = malloc(n);
    if (!path) return error_set(err, -ENOMEM, "%s: out of memory", name);
    snprintf(path, n, "%s/%s", src->path, name);
    int r = map_open(ret, path, err);
    free(path);
    return r;
}

static int open_texts(struct source *src, struct error *err) {
    for (int i = 0; i < SOURCE_N_TEXTS; i++) {
        int r = open_file(src, source_open_texts[i], &src->texts[i], err);
        if (r == -ENOENT && i != TEXT_CONFIG) continue;
        if (r < 0) return r;
    }
    return 0;
}

static int open_shard(struct source *src, const char *name, struct error *err) {
    struct map map;
    int r = open_file(src, name, &map, err);
    if (r < 0) return r;
    struct safetensors *shard = &src->shards[src->n_shards];
    r = safetensors_parse(shard, map.bytes, map.size, err);
    if (r < 0) {
        map_close(&map);
        return error_prefix(err, r, "%s", name);
    }
    shard->map = map;
    src->n_shards++;
    return 0;
}

static int open_index(struct source *src, const struct map *text, struct error *err) {
    struct safetensors_index index = {0};
    int r = safetensors_index_parse(&index, text->bytes, text->size, err);
    if (r < 0) return r;
    src->shards = calloc(index.n_files ? (size_t)index.n_files : 1, sizeof *src->shards);
    if (!src->shards) r = error_set(err, -ENOMEM, "shards: out of memory");
    for (int i = 0; i < index.n_files && !r; i++) r = open_shard(src, index.files[i], err);
    for (size_t i = 0; i < index.n_places && !r; i++) {
        const struct safetensors_place *place = &index.places[i];
        if (!safetensors_find(&src->shards[place->file], place->tensor))
            r = error_set(err, -EBADMSG,
                          "model.safetensors.index.json: weight_map '%.100s': is not in %.100s",
                          place->tensor, index.files[place->file]);
    }
    safetensors_index_free(&index);
    return r;
}

static int open_shards(struct source *src, struct error *err) {
    struct map map;
    struct error index_err;
    int r = open_file(src, "model.safetensors.index.json", &map, &index_err);
    if (!r) {
        r = open_index(src, &map, err);
        map_close(&map);
        return r;
    }
    if (r != -ENOENT) return error_set(err, r, "%s", index_err.text);
    src->shards = calloc(1, sizeof *src->shards);
    if (!src->shards) return error_set(err, -ENOMEM, "shards: out of memory");
    r = open_shard(src, "model.safetensors", err);
    if (r == -ENOENT)
        return error_set(err, r,
                         "neither model.safetensors nor model.safetensors.index.json is "
                         "there (weights in other formats must be converted first)");
    return r;
}

static void take_shape(struct source_tensor *t, const uint64_t *shape, int n) {
    t->n_dims = n;
    t->rows = t->cols = 1;
    for (int i = 0; i < n; i++) {
        t->shape[i] = shape[i];
        if (i == n - 1)
            t->cols = (int64_t)shape[i];
        else
            t->rows *= (int64_t)shape[i];
    }
}

/* Where a dense tensor's bytes lie in order and aligned, they are its data. */
static void offer_data(struct source_tensor *t) {
    enum dtype type;
    t->data = t->stored;
    if (t->kind > SOURCE_BF16 || t->rope_dim ||
        (source_dense_type(t, &type) && (uintptr_t)t->stored % dtype_size(type)))
        t->data = NULL;
}

static int add_packed(struct source *src, struct source_tensor *t, struct error *err) {
    struct packed_view *packed = &src->packed[src->n_packed];
    int r = packed_open(packed, t->stored, (size_t)t->n_bytes, err);
    if (r < 0) return r;
    src->n_packed++;
    t->bcq = packed->bcq;
    return 0;
}

static int add_plain(struct source_tensor *t, struct error *err) {
    int r = bcq_parse(&t->bcq, t->stored, (size_t)t->n_bytes, err);
    if (r == 0 && t->bcq.layout.total != t->n_bytes)
        r = error_set(err, -EBADMSG, "bytes follow the block");
    return r;
}

static int add_coded(struct source *src, struct source_tensor *t, struct error *err) {
    bool is_packed = packed_is(t->stored, (size_t)t->n_bytes);
    int r = is_packed ? add_packed(src, t, err) : add_plain(t, err);
    if (r < 0) return error_prefix(err, r, "tensor '%.100s'", t->name);
    t->is_bcq = true;
    t->kind = SOURCE_CODED;
    t->type_name = t->bcq.spec.kind == BCQ_WHOLE ? "WHOLE" : "BCQ";
    take_shape(t, (uint64_t[]){(uint64_t)t->bcq.spec.rows, (uint64_t)t->bcq.spec.cols}, 2);
    return 0;
}

/* Counts as no weights of its own, only as bytes. */
static int add_outliers(struct source_tensor *t, struct error *err) {
    int r = outliers_parse(&t->side, t->stored, (size_t)t->n_bytes, err);
    if (r < 0) return error_prefix(err, r, "tensor '%.100s'", t->name);
    t->kind = SOURCE_SIDE;
    t->type_name = "OUTLIERS";
    take_shape(t, (uint64_t[]){(uint64_t)t->side.rows, (uint64_t)t->side.cols}, 2);
    return 0;
}

static int add_rotation(struct source_tensor *t, struct error *err) {
    int r = rotation_parse(&t->turn, t->stored, (size_t)t->n_bytes, err);
    if (r < 0) return error_prefix(err, r, "tensor '%.100s'", t->name);
    t->kind = SOURCE_SIDE;
    t->type_name = "ROTATION";
    take_shape(t, (uint64_t[]){(uint64_t)t->turn.rows, (uint64_t)t->turn.cols}, 2);
    return 0;
}

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n > m && !strcmp(name + n - m, end);
}

static int add_safetensor(struct source *src, struct source_tensor *t,
                          const struct safetensors_tensor *from, int file, struct error *err) {
    *t = (struct source_tensor){.name = from->name,
                                .kind = SOURCE_OTHER,
                                .type_name = safetensors_type_name(from->type),
                                .n_bytes = from->n_bytes,
                                .stored = from->data,
                                .file = file};
    if (from->type == SAFETENSORS_U8 && ends_with(from->name, ".bcq"))
        return add_coded(src, t, err);
    if (from->type == SAFETENSORS_U8 && ends_with(from->name, outliers_end))
        return add_outliers(t, err);
    if (from->type == SAFETENSORS_U8 && ends_with(from->name, rotation_end))
        return add_rotation(t, err);
    take_shape(t, from->shape, from->n_dims);
    static const uint32_t same[SAFETENSORS_N_TYPES] = {
        [SAFETENSORS_F16] = GGUF_F16, [SAFETENSORS_BF16] = GGUF_BF16};
    if (from->type == SAFETENSORS_F32) {
        t->kind = SOURCE_F32;
        t->expand = gguf_quants_find(GGUF_F32);
    } else if (same[from->type]) {
        t->kind = from->type == SAFETENSORS_F16 ? SOURCE_F16 : SOURCE_BF16;
        t->expand = gguf_quants_find(same[from->type]);
    }
    offer_data(t);
    return 0;
}

static int add_safetensors(struct source *src, struct error *err) {
    size_t n = 0;
    for (int i = 0; i < src->n_shards; i++) n += src->shards[i].n_tensors;
    src->tensors = calloc(n ? n : 1, sizeof *src->tensors);
    src->packed = calloc(n ? n : 1, sizeof *src->packed);
    if (!src->tensors || !src->packed) return error_set(err, -ENOMEM, "tensors: out of memory");
    for (int i = 0; i < src->n_shards; i++)
        for (size_t k = 0; k < src->shards[i].n_tensors; k++) {
            const struct safetensors_tensor *from = &src->shards[i].tensors[k];
            int r = add_safetensor(src, &src->tensors[src->n_tensors], from, i, err);
            if (r < 0) return r;
            src->n_tensors++;
        }
    return 0;
}

static int add_gguf_tensor(struct source_tensor *t, const struct gguf_tensor *from,
                           const struct model_config *c, char name[GGUF_LLAMA_NAME],
                           struct error *err) {
    *t = (struct source_tensor){.name = name,
                                .kind = SOURCE_GGUF,
                                .type_name = from->type->name,
                                .n_bytes = from->n_bytes,
                                .stored = from->data,
                                .expand = from->type->expand ? from->type : NULL};
    switch (from->type->type) {
    case GGUF_F32:
        t->kind = SOURCE_F32;
        break;
    case GGUF_F16:
        t->kind = SOURCE_F16;
        break;
    case GGUF_BF16:
        t->kind = SOURCE_BF16;
        break;
    default:
        if (!t->expand) t->kind = SOURCE_OTHER;
    }
    uint64_t shape[GGUF_MAX_DIMS];
    for (int i = 0; i < from->n_dims; i++) shape[i] = from->dims[from->n_dims - 1 - i];
    take_shape(t, shape, from->n_dims);
    int heads;
    gguf_llama_name(name, &heads, from->name, c);
    if (heads && (t->n_dims > 2 || t->shape[0] != (uint64_t)heads * (uint64_t)c->head_dim))
        return error_set(err, -EBADMSG, "tensor '%s': %d heads of %d rows are needed", from->name,
                         heads, c->head_dim);
    if (heads) t->rope_dim = c->head_dim;
    offer_data(t);
    return 0;
}

static int add_gguf_tensors(struct source *src, struct error *err) {
    size_t n = src->gguf.n_tensors;
    src->tensors = calloc(n ? n : 1, sizeof *src->tensors);
    src->names = calloc(n ? n : 1, GGUF_LLAMA_NAME);
    if (!src->tensors || !src->names) return error_set(err, -ENOMEM, "tensors: out of memory");
    for (size_t i = 0; i < n; i++) {
        int r = add_gguf_tensor(&src->tensors[i], &src->gguf.tensors[i], &src->config,
                                src->names + i * GGUF_LLAMA_NAME, err);
        if (r < 0) return r;
        src->n_tensors++;
    }
    return 0;
}

static int by_name(const void *a, const void *b) {
    const struct source_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int sort_tensors(struct source *src, struct error *err) {
    qsort(src->tensors, src->n_tensors, sizeof *src->tensors, by_name);
    for (size_t i = 1; i < src->n_tensors; i++)
        if (!by_name(&src->tensors[i - 1], &src->tensors[i]))
            return error_set(err, -EBADMSG, "tensor '%.100s': occurs twice", src->tensors[i].name);
    return 0;
}

/* Sets *ret to the coded matrix that a side part belongs to; NULL when there is none. */
static int main_part(struct source_tensor **ret, struct source *src,
                     const struct source_tensor *side, struct error *err) {
    size_t base = (size_t)(strrchr(side->name, '.') - side->name);
    char *name = malloc(base + sizeof ".bcq");
    if (!name) return error_set(err, -ENOMEM, "tensors: out of memory");
    memcpy(name, side->name, base);
    memcpy(name + base, ".bcq", sizeof ".bcq");
    struct source_tensor key = {.name = name};
    *ret = bsearch(&key, src->tensors, src->n_tensors, sizeof key, by_name);
    if (*ret && !(*ret)->is_bcq) *ret = NULL;
    free(name);
    return 0;
}

/* The table is in its final place: pointers into it stay. */
static int join_sides(struct source *src, struct error *err) {
    for (size_t i = 0; i < src->n_tensors; i++) {
        const struct source_tensor *side = &src->tensors[i];
        if (side->kind != SOURCE_SIDE) continue;
        struct source_tensor *t;
        int r = main_part(&t, src, side, err);
        if (r < 0) return r;
        if (!t)
            return error_set(err, -EBADMSG, "tensor '%.100s': there is no coded matrix beside it",
                             side->name);
        if (t->rows != side->rows || t->cols != side->cols)
            return error_set(err, -EBADMSG, "tensor '%.100s': [%d, %d] beside a matrix of [%d, %d]",
                             side->name, (int)side->rows, (int)side->cols, t->bcq.spec.rows,
                             t->bcq.spec.cols);
        if (side->turn.cols)
            t->rotation = &side->turn;
        else
            t->outliers = &side->side;
        if (t->rotation && t->outliers)
            return error_set(err, -EBADMSG, "tensor '%.100s': has outliers and rotations", t->name);
    }
    return 0;
}

static int open_directory(struct source *src, struct error *err) {
    int r = open_texts(src, err);
    if (r < 0) return r;
    const struct map *config = &src->texts[TEXT_CONFIG];
    const struct map *generation = &src->texts[TEXT_GENERATION];
    r = config_parse(&src->config, config->bytes, config->size, generation->bytes, generation->size,
                     err);
    if (!r) r = open_shards(src, err);
    if (!r) r = add_safetensors(src, err);
    return r;
}

/* Takes the map. */
static int open_gguf(struct source *src, struct map *map, struct error *err) {
    src->is_gguf = true;
    int r = gguf_parse(&src->gguf, map->bytes, map->size, err);
    if (r < 0) {
        map_close(map);
        return r;
    }
    src->gguf.map = *map;
    r = config_from_gguf(&src->config, &src->gguf, err);
    if (!r) r = gguf_llama_check(&src->gguf, &src->config, err);
    if (!r) r = gguf_vocab_parse(&src->vocab, &src->gguf, src->config.vocab, err);
    if (!r) r = add_gguf_tensors(src, err);
    return r;
}

static bool is_gguf_name(const char *name) {
    size_t n = strlen(name);
    return n >= 5 && !strcmp(name + n - 5, ".gguf");
}

static int open_path(struct source *src, struct error *err) {
    struct stat st;
    if (stat(src->path, &st) < 0) return error_set(err, -errno, "%s", strerror(errno));
    if (S_ISDIR(st.st_mode)) return open_directory(src, err);
    if (!is_gguf_name(src->path))
        return error_set(err, -EINVAL, "is neither a model's directory nor a .gguf file");
    struct map map;
    int r = map_open(&map, src->path, err);
    return r < 0 ? r : open_gguf(src, &map, err);
}

static int open_images(struct source *src, struct error *err) {
    if (src->n_files == 1 && is_gguf_name(src->files[0].name)) {
        struct map map;
        map_wrap(&map, src->files[0].bytes, src->files[0].n);
        return open_gguf(src, &map, err);
    }
    return open_directory(src, err);
}

int source_open_all(struct source *src, struct error *err) {
    int r = src->path ? open_path(src, err) : open_images(src, err);
    if (!r) r = sort_tensors(src, err);
    if (!r) r = join_sides(src, err);
    /* Messages about a file of the directory begin with its path already. */
    if (r < 0 && src->path && err && strncmp(err->text, src->path, strlen(src->path)) != 0)
        return error_prefix(err, r, "%s", src->path);
    return r;
}
