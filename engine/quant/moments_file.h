/* moments_file.h - keeps the second moments of a block's inputs in a file, for other runs on the
 * same model and text (--moments).
 *
 * Owns      nothing beyond a call.
 * Borrows   everything during it.
 * Thread    one.
 * Fails     -EINVAL (damaged, or of another shape), -ENOSPC and other errnos of the file; the file
 *           is named.
 * Cost      half of each matrix in fp64: SmolLM2 13 MB a block, Llama 2 7B 690 MB.
 *
 * With static inputs moments depend on the original model and the text alone, and summing them is
 * most of the work of quantizing; a file spares it every time but the first, and the checkpoint is
 * the same to the byte. A file's name starts with a key of all that decides about the moments, so
 * one folder serves any number of models and texts. Files appear whole or not at all. */
#ifndef ENGINE_QUANT_MOMENTS_FILE_H
#define ENGINE_QUANT_MOMENTS_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/quant/moments.h"
#include "engine/sha256.h"

struct error;

enum { MOMENTS_FILE_KEY = 16 /* hex digits */, MOMENTS_FILE_PATH = 4096 };

struct moments_file {
    char path[MOMENTS_FILE_PATH];
    int layer;
    int width[INPUT_COUNT];
};

/* key: a digest of which the first digits are taken. -ENAMETOOLONG. */
int moments_file_name(struct moments_file *ret, const char *folder, const char key[SHA256_HEX],
                      int layer, const int width[INPUT_COUNT], struct error *err);

/* Whether it is there and of the size that it must have. */
bool moments_file_there(const struct moments_file *f);

/* h[i]: (width[i], width[i]) symmetric; NULL where the width is 0. */
int moments_file_write(const struct moments_file *f, double *const h[INPUT_COUNT],
                       struct error *err);
int moments_file_read(const struct moments_file *f, double *const h[INPUT_COUNT],
                      struct error *err);

#endif
