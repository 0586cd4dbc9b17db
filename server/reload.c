#include "server/reload.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text_file.h"
#include "kernels/error.h"
#include "server/gate.h"
#include "server/log.h"
#include "server/server.h"
#include "server/settings.h"
#include "server/tenants.h"

int reload_log_level(const struct server *s, struct error *err) {
    const char *path = s->settings->log_level_file;
    enum log_level level;
    char *text = NULL;
    size_t n;
    if (!path) return 0;
    int r = text_file_read(&text, &n, path, err);
    if (r < 0) return r;
    text[strcspn(text, " \t\n")] = 0;
    r = log_level_find(&level, text);
    if (r == 0)
        log_set_level(level);
    else
        error_set(err, r, "%s:1: '%.40s' is not one of error, warn, info, debug", path, text);
    free(text);
    return r;
}

void reload(struct server *s) {
    struct error err;
    if (gate_load(s, &err) < 0)
        log_line(LOG_ERROR, "hangup: the old keys stay: %s", err.text);
    else if (s->tenants->keys)
        log_line(LOG_WARN, "hangup: %d keys", s->tenants->keys->n);
    if (reload_log_level(s, &err) < 0)
        log_line(LOG_ERROR, "hangup: the old log level stays: %s", err.text);
}
