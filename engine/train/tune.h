/* tune.h - trains a coded model's stored parameters end to end against the original.
 *
 * Owns      nothing beyond the call; OUT.tune while a run is not finished.
 * Borrows   sources, options and events during the call.
 * Thread    one; work inside is spread over n_threads.
 * Fails     -EINVAL (an option, models that do not fit each other), -ENOTSUP (nothing is coded),
 *           -EDOM (the loss stays not finite), -ECANCELED (stopped as asked), and what its parts fail
 *           with.
 * Cost      memory: five floats a stored parameter, activations of one step up to 768 MiB, the
 *           original's last states of the windows used, the output matrix twice. Time: six
 *           operations a weight and token, two more for the original in the first epoch.
 *
 * The loss is KL(original || coded) over all positions of random windows; a tenth of the windows is
 * held out, and what is written is the state that does best on them, at worst the first. Codes and
 * shapes stay (EfficientQAT, 2407.11062, section 3.3: end-to-end training of step sizes; here also
 * biases, super-scales and norms, and the original's distribution as target). An interrupted run goes
 * on from OUT.tune when started again with the same options; the result is the same to the byte, on
 * any number of threads. */
#ifndef ENGINE_TRAIN_TUNE_H
#define ENGINE_TRAIN_TUNE_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct source;

enum tune_mode { TUNE_NONE, TUNE_SCALES /* of groups alone */, TUNE_E2E };

struct tune_options {
    enum tune_mode mode;
    int steps;   /* 0 = 80 */
    double rate; /* of the largest step, relative; 0 = 0.005 at 1 and 2 bits, 0.003 above */
    int tokens;  /* of a step; 0 = 1024; rounded up to whole windows */
    int ctx;     /* tokens of a window; 0 = 512, or the model's limit */
    const char *calibration; /* UTF-8 text file; NULL: the original writes its own */
    uint64_t seed;
    int n_threads;
    bool force;
    int stop_after; /* steps of this run; then -ECANCELED. 0 = do all */
};

struct tune_events {
    /* held_out: KL on the windows held out, negative when it was not measured after this step. */
    void (*step)(void *arg, int step, int steps, double loss, double held_out);
    void (*text)(void *arg, int64_t done, int64_t total); /* tokens that the model has written */
    void (*note)(void *arg, const char *text);
    void *arg;
};

struct tune_summary {
    int steps, windows, held_out_windows, ctx;
    double before, after; /* KL on the windows held out; after is the best */
    int best_step;        /* 0: the state it began with */
};

/* out: a checkpoint directory; model: the original; coded: what is tuned. */
int tune_run(struct tune_summary *ret, const char *out, struct source *model, struct source *coded,
             const struct tune_options *options, const struct tune_events *events,
             struct error *err);

/* "none", "scales", "e2e"; NULL past the last. */
const char *tune_mode_name(enum tune_mode mode);

#endif
