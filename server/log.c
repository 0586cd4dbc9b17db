#include "server/log.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/access_log.h"
#include "server/text.h"

static _Atomic int threshold = LOG_INFO;
static bool as_json;
static _Atomic long lost;

void log_set_level(enum log_level level) { threshold = (int)level; }

static const char *const names[] = {"error", "warn", "info", "debug"};

int log_level_find(enum log_level *ret, const char *name) {
    int level = LOG_ERROR;
    while (level <= LOG_DEBUG && strcmp(names[level], name) != 0) level++;
    if (level > LOG_DEBUG) return -EINVAL;
    *ret = (enum log_level)level;
    return 0;
}

bool log_wants(enum log_level level) { return (int)level <= threshold; }

void log_set_format(bool json) { as_json = json; }

static void add_time(struct text *line) {
    char stamp[32];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    text_addf(line, "%s.%03ldZ", stamp, now.tv_nsec / 1000000);
}

static void begin(struct text *line, enum log_level level) {
    if (as_json) text_adds(line, "{\"time\":\"");
    add_time(line);
    if (as_json)
        text_addf(line, "\",\"level\":\"%s\",", names[level]);
    else
        text_addf(line, " %-5s ", names[level]);
}

long log_lost(void) { return lost; }

/* A pipe that says it is writable takes PIPE_BUF bytes, and lines are shorter. One write, so that
 * lines of several threads do not mix. */
static void end(struct text *line) {
    if (as_json) text_adds(line, "}");
    for (size_t i = 0; i < line->n; i++)
        if ((unsigned char)line->data[i] < ' ' || line->data[i] == 0x7f) line->data[i] = '?';
    text_adds(line, "\n");
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    bool ready = !line->failed && poll(&out, 1, 0) == 1 && out.revents & POLLOUT;
    if (!ready || write(STDERR_FILENO, line->data, line->n) != (ssize_t)line->n) lost++;
    text_deinit(line);
}

void log_line(enum log_level level, const char *format, ...) {
    char message[2048];
    struct text line = {0};
    if (!log_wants(level)) return;
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    begin(&line, level);
    if (as_json) {
        text_adds(&line, "\"message\":");
        text_add_json(&line, message);
    } else {
        text_adds(&line, message);
    }
    end(&line);
}

void log_access(const struct access_record *record) {
    struct text line = {0};
    if (!log_wants(LOG_INFO)) return;
    begin(&line, LOG_INFO);
    if (as_json)
        access_log_json(&line, record);
    else
        access_log_text(&line, record);
    end(&line);
}
