/* tune_state.h - keeps what an interrupted tuning run needs to go on, in one file.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    one.
 * Fails     saving: errno of the disk. Loading never: a file that is damaged, or of another run, is
 *           none.
 * Cost      three floats a variable are written and synced.
 *
 * The file appears whole or not at all, and ends with the SHA-256 of all before. */
#ifndef ENGINE_TRAIN_TUNE_STATE_H
#define ENGINE_TRAIN_TUNE_STATE_H

#include <stdbool.h>

#include "engine/sha256.h"

struct error;
struct student;

/* Plain numbers: all that is not in the student. */
struct tune_progress {
    int step;      /* done */
    int adam_step; /* since the moments were 0 */
    int halvings;  /* of the rate */
    int best_step;
    double before, best;
};

int tune_state_save(const char *path, const char *settings_hash, const struct tune_progress *p,
                    struct student *s, struct error *err);

/* False, with nothing changed, when there is none that fits. */
bool tune_state_load(const char *path, const char *settings_hash, struct tune_progress *p,
                     struct student *s);

#endif
