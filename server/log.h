/* log.h - writes one line for each thing worth knowing to standard error.
 *
 * Owns      level and format, the only mutable globals of the server.
 * Borrows   the arguments during the call.
 * Thread    log_set_format() before threads start; the rest any.
 * Fails     never; a line that cannot be written at once is lost, and counted.
 * Cost      one formatted write.
 *
 * A line is time, level, text, or as JSON an object with these members. Control characters in
 * it become '?', or are escaped, so what a client sends cannot forge a line. A reader of the log
 * that has stopped must not stop the loop, so nothing here waits for one. */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

#include <stdbool.h>

struct access_record;

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level);

/* -EINVAL: no level is called so. */
int log_level_find(enum log_level *ret, const char *name);
void log_set_format(bool json);

/* Lines that were lost. */
long log_lost(void);

bool log_wants(enum log_level level);

/* Of at most 2 KiB; what is longer is cut. */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* An answered request, at level info. */
void log_access(const struct access_record *record);

#endif
