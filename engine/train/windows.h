/* windows.h - the windows of text that tuning runs on, in order, and those held out.
 *
 * Owns      the tokens until windows_close().
 * Borrows   the source and the path during windows_open().
 * Thread    one at a time.
 * Fails     -EINVAL (a text too short, tokens outside of the vocabulary), -ENOENT and the like for the
 *           file, -ENOMEM; what the model fails with when it writes the text itself.
 * Cost      one pass of the tokenizer; text of the model's own takes a forward pass a token.
 *
 * Windows are cut side by side over the whole text. A tenth at its end is held out, of which eight at
 * most are measured; the rest is mixed once for the first epoch and anew for each after it. */
#ifndef ENGINE_TRAIN_WINDOWS_H
#define ENGINE_TRAIN_WINDOWS_H

#include <stdint.h>

struct error;
struct source;

struct windows {
    int32_t *tokens; /* (n_train + n_held, ctx) */
    int n_train, n_held, ctx;
    uint64_t seed;
    int *order; /* (n_train) of the present epoch, from the second on */
    int epoch;
};

struct windows_options {
    const char *calibration; /* UTF-8 text file; NULL: the model writes it */
    int ctx;
    uint64_t seed;
    int n_threads;
    void (*progress)(void *arg, int64_t done, int64_t total); /* tokens written; may be NULL */
    void *progress_arg;
};

int windows_open(struct windows *ret, struct source *src, const struct windows_options *options,
                 struct error *err);
void windows_close(struct windows *w); /* zeroed is allowed */

/* Number of the i-th window to train on in a run that never ends. */
int windows_at(struct windows *w, int64_t i);

#endif
