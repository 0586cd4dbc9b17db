/* sensitivity_state.h - what the ways of finding sensitivities share.
 *
 * Owns      see struct sensitivity.
 * Borrows   see sensitivity.h.
 * Thread    one.
 * Fails     as sensitivity.h.
 * Cost      see sensitivity.h. */
#ifndef ENGINE_QUANT_SENSITIVITY_STATE_H
#define ENGINE_QUANT_SENSITIVITY_STATE_H

#include <stdbool.h>

#include "engine/quant/calibrate.h"
#include "engine/quant/mixed.h"
#include "engine/quant/sensitivity.h"

struct model_config;

enum { SENSITIVITY_NAME_SIZE = 192 };

/* What gets bits together: the roles of a block that are set. */
struct sensitivity_unit {
    int layer;
    unsigned roles; /* bit per role */
    enum calibrate_input input;
    char name[SENSITIVITY_NAME_SIZE]; /* of its first matrix */
};

struct sensitivity {
    const struct sensitivity_job *job;
    const struct model_config *config;
    struct model *model;
    struct sensitivity_unit *units; /* (n_units) block by block */
    struct mixed_unit *table;
    size_t n_units;
    double weights; /* coded, of all units */
    size_t largest; /* weights of a matrix */
    json_t *found;  /* name of a unit -> harms by bits */
};

/* Puts the harms that an earlier run found into the table; false when it has not got as far, or left
 * something else. */
bool sensitivity_found(struct sensitivity *s, size_t unit);

/* Keeps the harms of a unit for the next run. */
int sensitivity_keep(struct sensitivity *s, size_t unit, struct error *err);

/* How units are coded when it is about differences between them. */
struct layer_options sensitivity_cheap(const struct sensitivity *s, int bits);

/* Find what is not found yet, and keep it. */
int sensitivity_by_probe(struct sensitivity *s, struct error *err);
int sensitivity_by_gradient(struct sensitivity *s, struct error *err);

#endif
