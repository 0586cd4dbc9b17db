/* progress.h - shows how far long work has come, on stderr.
 *
 * Owns      nothing; struct progress lives with the caller.
 * Borrows   the label until progress_end().
 * Thread    one.
 * Fails     never.
 * Cost      a write at most ten times a second on a terminal, else at every tenth of the work.
 *
 * On a terminal one line is redrawn with a bar, the rate and the time left; into a file or a
 * pipe plain lines go out. The clock comes in from outside. */
#ifndef SERVER_PROGRESS_H
#define SERVER_PROGRESS_H

#include <stdbool.h>

struct progress {
    const char *label, *unit; /* "eval", "tokens" */
    double total;
    double started, drawn; /* seconds */
    int tenths;            /* plain lines written */
    bool terminal, quiet;
};

void progress_begin(struct progress *p, const char *label, const char *unit, double total,
                    double now, bool quiet);
void progress_update(struct progress *p, double done, double now);
void progress_end(struct progress *p, double done, double now);

#endif
