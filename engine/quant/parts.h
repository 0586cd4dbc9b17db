/* parts.h - writes the tensors that one coded matrix consists of and reads them back.
 *
 * Owns      struct parts' mappings until parts_close().
 * Borrows   the writer while parts are open.
 * Thread    the writer's.
 * Fails     -EBADMSG (a partial checkpoint is damaged), what the writer fails with; tensors are
 *           named.
 * Cost      writing waits for the disk, see checkpoint_writer.h.
 *
 * A matrix NAME is NAME.bcq and, where it has them, NAME.outliers and NAME.rotation. */
#ifndef ENGINE_QUANT_PARTS_H
#define ENGINE_QUANT_PARTS_H

#include <stdbool.h>

#include "engine/map.h"
#include "engine/packed.h"
#include "engine/safetensors.h"
#include "kernels/outliers.h"
#include "kernels/rotation.h"
#include "kernels/weights.h"

struct checkpoint_writer;
struct error;
struct layer_options;
struct layer_result;

enum { PARTS_MOST = 3 };

struct parts {
    struct weight_view view; /* the whole matrix */
    struct outliers_view outliers;
    struct packed_view packed; /* where the block is stored so */
    struct rotation_view rotation;
    struct safetensors files[PARTS_MOST];
    struct map maps[PARTS_MOST];
};

enum parts_codec {
    PARTS_PLAIN,
    PARTS_PVQ /* packed.h, where that is smaller */
};

/* "none", "pvq"; NULL past the last. */
const char *parts_codec_name(enum parts_codec codec);

/* saved: bytes that the codec has saved; 0 where it would not have. */
int parts_write(struct checkpoint_writer *w, const char *name, const struct layer_result *result,
                enum parts_codec codec, size_t *saved, struct error *err);

/* Reads a block in either form; packed is zeroed or open afterwards, to be closed in any case. */
int parts_read_block(struct bcq_view *ret, struct packed_view *packed, const void *bytes,
                     size_t n_bytes, struct error *err);

/* Whether all parts that these options make are there. */
bool parts_there(const struct checkpoint_writer *w, const char *name,
                 const struct layer_options *options);

int parts_open(struct parts *ret, const struct checkpoint_writer *w, const char *name, int rows,
               int cols, const struct layer_options *options, struct error *err);
void parts_close(struct parts *p); /* zeroed is allowed */

#endif
