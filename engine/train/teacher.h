/* teacher.h - the states that the original model's output matrix reads, for windows of text.
 *
 * Owns      the states seen so far, in fp16, until teacher_free().
 * Borrows   parameters, ends, tokens and network until teacher_free().
 * Thread    the network's.
 * Fails     -ENOMEM; -EBADMSG from the source; -ERANGE (states beyond fp16).
 * Cost      a forward pass over a group of windows when the first of it is asked for, with one
 *           block's weights in memory; then nothing.
 *
 * Groups are runs of windows by their number, so a window's states do not depend on the order in
 * which windows are asked for. */
#ifndef ENGINE_TRAIN_TEACHER_H
#define ENGINE_TRAIN_TEACHER_H

#include <stdint.h>

struct error;
struct network;
struct params;
struct teacher;

struct teacher_text {
    const int32_t *tokens; /* (n_windows, ctx) */
    int n_windows, ctx;
    int width, n_layers; /* of a state: the model's embed_dim */
    int hidden;
};

/* net: of the original's config and ends, with room for n_seqs windows at a time. */
int teacher_new(struct teacher **ret, struct network *net, struct params *params, int n_seqs,
                const struct teacher_text *text, struct error *err);
void teacher_free(struct teacher *t); /* NULL is allowed */

/* states: (ctx, width) of one window. */
int teacher_states(struct teacher *t, int window, float *states, struct error *err);

#endif
