/* source_open.h - the inside of a source, shared by source.c and source_open.c.
 *
 * Owns      see source.h.
 * Borrows   see source.h.
 * Thread    see source.h.
 * Fails     source_open_all() leaves a half-built source that source_close() frees.
 * Cost      see source.h. */
#ifndef ENGINE_SOURCE_OPEN_H
#define ENGINE_SOURCE_OPEN_H

#include "engine/config.h"
#include "engine/gguf.h"
#include "engine/gguf_vocab.h"
#include "engine/map.h"
#include "engine/packed.h"
#include "engine/safetensors.h"
#include "engine/source.h"

enum { SOURCE_N_TEXTS = 7 };

/* The files that source_file_text() knows. */
extern const char *const source_open_texts[SOURCE_N_TEXTS];

struct source {
    const char *path;                /* of the directory or file while opening; NULL in memory */
    const struct source_file *files; /* (n_files) while opening from memory */
    int n_files;

    struct model_config config;
    struct map texts[SOURCE_N_TEXTS]; /* bytes NULL: no such file */
    struct safetensors *shards;       /* (n_shards), in the order of their names */
    int n_shards;
    bool is_gguf;
    struct gguf gguf;
    struct gguf_vocab vocab;

    struct source_tensor *tensors; /* (n_tensors) sorted by name */
    size_t n_tensors;
    struct packed_view *packed; /* (n_packed) what packed blocks were expanded to */
    size_t n_packed;
    char *names; /* of a GGUF file's tensors; the other form's names are the shards' */
};

int source_open_all(struct source *src, struct error *err);

#endif
