/* gguf.h - reads the directory of a GGUF file: metadata and tensors.
 *
 * Owns      the mapping (when opened) and two tables.
 * Borrows   the bytes given to gguf_parse(), until close.
 * Thread    any; a parsed file does not change.
 * Fails     -EBADMSG naming the key or tensor, -ENOTSUP version or type, -ENOMEM, errno.
 * Cost      parse O(directory); arrays stay in the file and are read in place.
 *
 * After parse every key, string and array element lies inside the file, keys and tensor names
 * are unique printable ASCII, and tensor data lie inside the file without overlapping. */
#ifndef ENGINE_GGUF_H
#define ENGINE_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/gguf_quants.h"
#include "engine/map.h"

struct error;

enum { GGUF_MAX_DIMS = 4, GGUF_MAX_NAME = 63 };

/* Types of metadata values, numbered as in the files. */
enum gguf_kind {
    GGUF_KIND_U8,
    GGUF_KIND_I8,
    GGUF_KIND_U16,
    GGUF_KIND_I16,
    GGUF_KIND_U32,
    GGUF_KIND_I32,
    GGUF_KIND_F32,
    GGUF_KIND_BOOL,
    GGUF_KIND_STRING,
    GGUF_KIND_ARRAY,
    GGUF_KIND_U64,
    GGUF_KIND_I64,
    GGUF_KIND_F64
};

struct gguf_text {
    const char *bytes; /* not NUL-terminated; any bytes */
    size_t n;
};

struct gguf_pair {
    struct gguf_text key;
    uint32_t kind;     /* enum gguf_kind */
    uint32_t element;  /* kind of the elements when kind is GGUF_KIND_ARRAY */
    uint64_t n;        /* elements; 1 when not an array */
    const uint8_t *at; /* first byte of the value or first element, little endian */
};

struct gguf_tensor {
    char name[GGUF_MAX_NAME + 1];
    const struct gguf_quants_type *type;
    int n_dims;
    uint64_t dims[GGUF_MAX_DIMS]; /* dims[0] is the length of a row; unused ones are 1 */
    const uint8_t *data;
    uint64_t n_bytes;
};

struct gguf {
    struct map map;
    struct gguf_pair *pairs; /* (n_pairs) sorted by key */
    size_t n_pairs;
    struct gguf_tensor *tensors; /* (n_tensors) sorted by name */
    size_t n_tensors;
};

int gguf_parse(struct gguf *ret, const void *bytes, size_t n, struct error *err);
int gguf_open(struct gguf *ret, const char *path, struct error *err);
void gguf_close(struct gguf *g); /* a zeroed one is allowed */

/* NULL when there is none. */
const struct gguf_pair *gguf_find(const struct gguf *g, const char *key);
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name);

/* Element i (0 for a scalar) when it is of that sort, whatever its width; false otherwise. An
 * unsigned value above INT64_MAX is no int here. */
bool gguf_get_int(int64_t *ret, const struct gguf_pair *pair, uint64_t i);
bool gguf_get_real(double *ret, const struct gguf_pair *pair, uint64_t i);
bool gguf_get_bool(bool *ret, const struct gguf_pair *pair);
bool gguf_get_text(struct gguf_text *ret, const struct gguf_pair *pair);

/* ret: (pair->n) texts of an array of strings; false when it is none. */
bool gguf_get_texts(struct gguf_text *ret, const struct gguf_pair *pair);

#endif
