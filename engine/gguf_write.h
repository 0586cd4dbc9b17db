/* gguf_write.h - writes a GGUF file: metadata first, then tensors in the order they were declared.
 *
 * Owns      the collected directory and the temporary file, until close.
 * Borrows   keys, values and data during the calls.
 * Thread    one at a time for each writer.
 * Fails     begin, data and commit with -ENOMEM (also of what was collected before), -EINVAL (data
 *           that are not what was declared) and the errno of the disk; the rest never.
 * Cost      the directory in memory, data straight to the disk; commit waits for it.
 *
 * Version 3, little endian, data aligned to 32 bytes. The file appears complete or not at all. */
#ifndef ENGINE_GGUF_WRITE_H
#define ENGINE_GGUF_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/atomic_file.h"
#include "engine/buf.h"

struct error;
struct gguf_quants_type;

/* A zeroed one, with the file's descriptor at -1, is empty: GGUF_WRITE_INIT. */
struct gguf_write {
    struct buf pairs, tensors;
    uint64_t n_pairs, n_tensors;
    uint64_t declared, written; /* bytes of data, padding included */
    int status;                 /* the first failure while collecting */
    struct atomic_file file;
};

#define GGUF_WRITE_INIT                                                                            \
    {                                                                                              \
        .file = {.fd = -1 }                                                                        \
    }

void gguf_write_text(struct gguf_write *w, const char *key, const char *text, size_t n);
void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t value);
void gguf_write_f32(struct gguf_write *w, const char *key, float value);
void gguf_write_bool(struct gguf_write *w, const char *key, bool value);
void gguf_write_i32s(struct gguf_write *w, const char *key, const int32_t *values, size_t n);

/* An array of n strings, each of which follows by one call of element(). */
void gguf_write_texts(struct gguf_write *w, const char *key, size_t n);
void gguf_write_element(struct gguf_write *w, const char *text, size_t n);

/* dims[0] is the length of a row, whole blocks of the type. */
void gguf_write_tensor(struct gguf_write *w, const char *name, const struct gguf_quants_type *type,
                       int n_dims, const uint64_t *dims);

/* Opens the file and writes the directory. */
int gguf_write_begin(struct gguf_write *w, const char *path, struct error *err);

/* The next bytes of the tensor in hand; end() fills up to where the next one begins. */
int gguf_write_data(struct gguf_write *w, const void *bytes, size_t n, struct error *err);
int gguf_write_end(struct gguf_write *w, struct error *err);

int gguf_write_commit(struct gguf_write *w, struct error *err);
void gguf_write_close(struct gguf_write *w); /* drops what was not committed */

#endif
