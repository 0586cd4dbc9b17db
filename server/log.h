/* log.h - writes one line for each thing worth knowing to standard error.
 *
 * Owns      the level, the only mutable global of the server.
 * Borrows   the arguments during the call.
 * Thread    log_set_level() before threads start; the rest any.
 * Fails     never; a line that cannot be written is lost.
 * Cost      one formatted write of at most 1 KiB.
 *
 * A line is time, level, text. Control characters in it become '?', so what a client sends
 * cannot forge a line. */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level);

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
