#include "engine/quant/parts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/checkpoint_writer.h"
#include "engine/quant/layer.h"
#include "kernels/error.h"

enum { NAME_SIZE = 224, PART_CODES = 0, PART_OUTLIERS, PART_ROTATION };

static const char *const ends[PARTS_MOST] = {".bcq", ".outliers", ".rotation"};

static void name_of(char full[NAME_SIZE], const char *name, int part) {
    snprintf(full, NAME_SIZE, "%s%s", name, ends[part]);
}

static int write_part(struct checkpoint_writer *w, const char *name, int part, const void *block,
                      size_t n_bytes, struct error *err) {
    char full[NAME_SIZE];
    name_of(full, name, part);
    struct safetensors_tensor t = {.name = full,
                                   .type = SAFETENSORS_U8,
                                   .n_dims = 1,
                                   .shape = {n_bytes},
                                   .data = block,
                                   .n_bytes = n_bytes};
    return checkpoint_writer_add(w, &t, err);
}

const char *parts_codec_name(enum parts_codec codec) {
    static const char *const names[] = {"none", "pvq"};
    return (size_t)codec < sizeof names / sizeof *names ? names[codec] : NULL;
}

/* Plain where packing is no gain. */
static int write_codes(struct checkpoint_writer *w, const char *name,
                       const struct layer_result *result, enum parts_codec codec, size_t *saved,
                       struct error *err) {
    void *packed = NULL;
    size_t n = 0;
    int r =
        codec == PARTS_PVQ ? packed_make(&packed, &n, &result->view, result->block, err) : -ERANGE;
    *saved = r == 0 ? result->n_bytes - n : 0;
    if (r == 0)
        r = write_part(w, name, PART_CODES, packed, n, err);
    else if (r == -ERANGE)
        r = write_part(w, name, PART_CODES, result->block, result->n_bytes, err);
    free(packed);
    return r;
}

int parts_write(struct checkpoint_writer *w, const char *name, const struct layer_result *result,
                enum parts_codec codec, size_t *saved, struct error *err) {
    int r = 0;
    if (result->side) r = write_part(w, name, PART_OUTLIERS, result->side, result->n_side, err);
    if (r == 0 && result->turns)
        r = write_part(w, name, PART_ROTATION, result->turns, result->n_turns, err);
    return r < 0 ? r : write_codes(w, name, result, codec, saved, err);
}

int parts_read_block(struct bcq_view *ret, struct packed_view *packed, const void *bytes,
                     size_t n_bytes, struct error *err) {
    *packed = (struct packed_view){0};
    if (!packed_is(bytes, n_bytes)) return bcq_parse(ret, bytes, n_bytes, err);
    int r = packed_open(packed, bytes, n_bytes, err);
    if (r == 0) *ret = packed->bcq;
    return r;
}

static bool has(const struct checkpoint_writer *w, const char *name, int part) {
    char full[NAME_SIZE];
    name_of(full, name, part);
    return checkpoint_writer_has(w, full);
}

bool parts_there(const struct checkpoint_writer *w, const char *name,
                 const struct layer_options *o) {
    return has(w, name, PART_CODES) && (!(o->outliers > 0.0) || has(w, name, PART_OUTLIERS)) &&
           (o->incoherence == LAYER_NATURAL || has(w, name, PART_ROTATION));
}

static int open_part(struct parts *p, const struct checkpoint_writer *w, const char *name, int part,
                     const struct safetensors_tensor **ret, struct error *err) {
    char full[NAME_SIZE];
    name_of(full, name, part);
    int r = checkpoint_writer_map(w, full, &p->maps[part], err);
    if (r < 0) return r;
    r = safetensors_parse(&p->files[part], p->maps[part].bytes, p->maps[part].size, err);
    if (r < 0) return r;
    *ret = safetensors_find(&p->files[part], full);
    return *ret ? 0 : error_set(err, -EBADMSG, "%s: the partial checkpoint is damaged", full);
}

static int wrong_shape(struct error *err) {
    return error_set(err, -EBADMSG, "the partial checkpoint has another shape");
}

static int open_codes(struct parts *p, const struct checkpoint_writer *w, const char *name,
                      struct error *err) {
    const struct safetensors_tensor *t;
    struct weight_view *v = &p->view;
    int r = open_part(p, w, name, PART_CODES, &t, err);
    if (r == 0) r = parts_read_block(&v->bcq, &p->packed, t->data, (size_t)t->n_bytes, err);
    if (r == 0 && (v->bcq.spec.rows != v->rows || v->bcq.spec.cols != v->cols))
        r = wrong_shape(err);
    v->is_bcq = 1;
    return r;
}

static int open_outliers(struct parts *p, const struct checkpoint_writer *w, const char *name,
                         struct error *err) {
    const struct safetensors_tensor *t;
    int r = open_part(p, w, name, PART_OUTLIERS, &t, err);
    if (r == 0) r = outliers_parse(&p->outliers, t->data, (size_t)t->n_bytes, err);
    if (r == 0 && (p->outliers.rows != p->view.rows || p->outliers.cols != p->view.cols))
        r = wrong_shape(err);
    p->view.outliers = &p->outliers;
    return r;
}

static int open_rotation(struct parts *p, const struct checkpoint_writer *w, const char *name,
                         struct error *err) {
    const struct safetensors_tensor *t;
    int r = open_part(p, w, name, PART_ROTATION, &t, err);
    if (r == 0) r = rotation_parse(&p->rotation, t->data, (size_t)t->n_bytes, err);
    if (r == 0 && (p->rotation.rows != p->view.rows || p->rotation.cols != p->view.cols))
        r = wrong_shape(err);
    p->view.rotation = &p->rotation;
    return r;
}

int parts_open(struct parts *ret, const struct checkpoint_writer *w, const char *name, int rows,
               int cols, const struct layer_options *o, struct error *err) {
    *ret = (struct parts){.view = {.rows = rows, .cols = cols}};
    int r = open_codes(ret, w, name, err);
    if (r == 0 && o->outliers > 0.0) r = open_outliers(ret, w, name, err);
    if (r == 0 && o->incoherence != LAYER_NATURAL) r = open_rotation(ret, w, name, err);
    if (r < 0) parts_close(ret);
    return r;
}

void parts_close(struct parts *p) {
    packed_close(&p->packed);
    for (int i = 0; i < PARTS_MOST; i++) {
        safetensors_close(&p->files[i]);
        map_close(&p->maps[i]);
    }
}
