/* reload.h - reads again what may change while the server runs: keys, quotas, log level.
 *
 * Owns      nothing.
 * Borrows   the server during the call.
 * Thread    the loop's.
 * Fails     into the log: what is broken changes nothing.
 * Cost      that of reading two small files; requests wait meanwhile.
 *
 * Requests that run go on under the names they came with, and tenants keep what they have used. */
#ifndef SERVER_RELOAD_H
#define SERVER_RELOAD_H

struct error;
struct server;

/* Reads all of it and logs what became of it. */
void reload(struct server *s);

/* Sets the log level from the file of the settings, if there is one. */
int reload_log_level(const struct server *s, struct error *err);

#endif
