/* layer_options.h - what the options of one matrix mean to the code that carries them out.
 *
 * Owns      nothing.
 * Borrows   the options during the call.
 * Thread    any.
 * Fails     never.
 * Cost      none to speak of.
 *
 * layer_defaults() and layer_check() of layer.h stand in the same file. */
#ifndef ENGINE_QUANT_LAYER_OPTIONS_H
#define ENGINE_QUANT_LAYER_OPTIONS_H

#include "engine/quant/layer.h"

bool layer_is_uniform(enum layer_method method);
bool layer_is_alternating(enum layer_method method);
/* Errors are fed forward. */
bool layer_has_loop(enum layer_method method);

/* The classic loop lays its grids as it goes, which only the free form can store, and only where
 * groups are runs of natural columns. */
bool layer_lays_as_it_goes(const struct layer_options *options);

#endif
