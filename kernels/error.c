#include "kernels/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A message is one line in a log and one string in a JSON reply. */
static void flatten(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < ' ') *text = ' ';
}

int error_set(struct error *err, int code, const char *format, ...) {
    if (!err) return code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    flatten(err->text);
    return code;
}

int error_prefix(struct error *err, int code, const char *format, ...) {
    if (!err) return code;
    char tail[sizeof err->text];
    memcpy(tail, err->text, sizeof tail);
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    size_t n = strlen(err->text);
    snprintf(err->text + n, sizeof err->text - n, ": %s", tail);
    flatten(err->text);
    return code;
}
