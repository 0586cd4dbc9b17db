#include "tests/support/densify.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/source.h"
#include "kernels/error.h"

static void add(struct checkpoint_writer *w, const struct source *src,
                const struct source_tensor *t) {
    char name[256];
    struct error err = {""};
    size_t n = (size_t)t->rows * (size_t)t->cols;
    float *data = malloc(n * sizeof *data);
    cr_assert(data);
    cr_assert_eq(source_read_rows(src, t, 0, t->rows, data, &err), 0, "%s", err.text);
    int base = (int)strlen(t->name) - (t->is_bcq ? 4 : 0);
    snprintf(name, sizeof name, "%.*s%s", base, t->name, t->is_bcq ? ".weight" : "");
    struct safetensors_tensor out = {.name = name,
                                     .type = SAFETENSORS_F32,
                                     .n_dims = t->n_dims,
                                     .data = data,
                                     .n_bytes = n * sizeof *data};
    for (int i = 0; i < t->n_dims; i++) out.shape[i] = t->shape[i];
    cr_assert_eq(checkpoint_writer_add(w, &out, &err), 0, "%s", err.text);
    free(data);
}

void densify(const char *coded, const char *out) {
    struct source *src;
    struct checkpoint_writer *w;
    struct error err = {""};
    struct checkpoint_writer_options options = {.settings = "dense"};
    const char *config;
    size_t n;
    cr_assert_eq(source_open(&src, coded, &err), 0, "%s", err.text);
    cr_assert_eq(checkpoint_writer_open(&w, out, &options, &err), 0, "%s", err.text);
    for (size_t i = 0; i < source_count(src); i++)
        if (source_at(src, i)->kind != SOURCE_SIDE) add(w, src, source_at(src, i));
    cr_assert_eq(source_file_text(src, "config.json", &config, &n), 0);
    cr_assert_eq(checkpoint_writer_add_config(w, config, n, NULL, &err), 0, "%s", err.text);
    cr_assert_eq(checkpoint_writer_finish(w, &err), 0, "%s", err.text);
    checkpoint_writer_close(w);
    source_close(src);
}
