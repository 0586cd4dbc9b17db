/* safetensors.h - reads and writes safetensors files.
 *
 * Owns      struct safetensors: the mapping (when opened) and the table of tensors.
 * Borrows   the bytes given to safetensors_parse(), until close; writers: nothing after return.
 * Thread    any; a parsed file does not change.
 * Fails     -EBADMSG naming the tensor and field, -E2BIG over a limit, -ENOMEM, errno of a file.
 * Cost      parse O(header), with heap in proportion to the header's real size; data is mapped.
 *
 * After parse every tensor's data lies inside the file, n_bytes is shape times type, tensors do
 * not overlap, and together they fill the data section without a hole. */
#ifndef ENGINE_SAFETENSORS_H
#define ENGINE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/map.h"

struct error;

enum safetensors_type {
    SAFETENSORS_F64,
    SAFETENSORS_I64,
    SAFETENSORS_U64,
    SAFETENSORS_F32,
    SAFETENSORS_I32,
    SAFETENSORS_U32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_I16,
    SAFETENSORS_U16,
    SAFETENSORS_I8,
    SAFETENSORS_U8,
    SAFETENSORS_BOOL,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2,
    SAFETENSORS_N_TYPES
};

enum {
    SAFETENSORS_MAX_DIMS = 8,
    SAFETENSORS_ALIGN = 64 /* of the data section in files written here */
};

struct safetensors_tensor {
    const char *name; /* UTF-8 */
    enum safetensors_type type;
    int n_dims; /* 0 = one element */
    uint64_t shape[SAFETENSORS_MAX_DIMS];
    const void *data; /* aligned only as well as the file's writer saw to it */
    uint64_t n_bytes;
};

struct safetensors {
    struct map map;
    struct safetensors_tensor *tensors; /* (n_tensors) sorted by name */
    size_t n_tensors;
    char *names;
};

size_t safetensors_type_size(enum safetensors_type type);
const char *safetensors_type_name(enum safetensors_type type);

int safetensors_parse(struct safetensors *ret, const void *bytes, size_t n, struct error *err);
int safetensors_open(struct safetensors *ret, const char *path, struct error *err);
void safetensors_close(struct safetensors *st); /* a zeroed one is allowed */

/* NULL when there is none of that name. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name);

/* The files that a model.safetensors.index.json spreads a model over, and which tensor is where.
 * Names of files are plain: they cannot leave the directory. */
struct safetensors_index {
    struct safetensors_place {
        const char *tensor;
        int file;
    } * places; /* (n_places) */
    size_t n_places;
    const char **files; /* (n_files) sorted */
    int n_files;
    char *names;
};

int safetensors_index_parse(struct safetensors_index *ret, const void *text, size_t n,
                            struct error *err);
void safetensors_index_free(struct safetensors_index *index); /* a zeroed one is allowed */

/* Writes the file atomically. Binary-coded blocks (U8 tensors whose names end in ".bcq") come
 * first and lie at multiples of 64, the rest follows from wide types to narrow ones, each
 * naturally aligned; within a width the order is the caller's. */
int safetensors_write(const char *path, const struct safetensors_tensor *tensors, size_t n,
                      struct error *err);

#endif
