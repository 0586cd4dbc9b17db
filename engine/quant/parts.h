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
    struct rotation_view rotation;
    struct safetensors files[PARTS_MOST];
    struct map maps[PARTS_MOST];
};

int parts_write(struct checkpoint_writer *w, const char *name, const struct layer_result *result,
                struct error *err);

/* Whether all parts that these options make are there. */
bool parts_there(const struct checkpoint_writer *w, const char *name,
                 const struct layer_options *options);

int parts_open(struct parts *ret, const struct checkpoint_writer *w, const char *name, int rows,
               int cols, const struct layer_options *options, struct error *err);
void parts_close(struct parts *p); /* zeroed is allowed */

#endif
