/* fields.h - takes typed, range-checked values out of a JSON object or GGUF metadata.
 *
 * Owns      nothing; struct fields is embedded by its user.
 * Borrows   the JSON object or the GGUF file, and the strings it hands out live as long.
 * Thread    any, one at a time.
 * Fails     the first wrong value is kept in code and err; later calls return fallbacks, so a
 *           reader takes everything and looks at code once.
 * Cost      one look-up for each call.
 *
 * A JSON null counts as absent. What is absent takes the fallback; without one it is an error. */
#ifndef ENGINE_FIELDS_H
#define ENGINE_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct gguf;

#define FIELDS_REQUIRED INT64_MIN /* as fallback of fields_int() */

struct fields {
    const char *what;        /* for messages: "config.json", "metadata" */
    const json_t *json;      /* this, */
    const struct gguf *gguf; /* or this */
    int code;                /* 0 or the first negative errno */
    struct error *err;
};

bool fields_has(const struct fields *f, const char *key);

int64_t fields_int(struct fields *f, const char *key, int64_t low, int64_t high, int64_t fallback);

/* In [low, high] and finite; an integer is a real as well. Required when the fallback is NaN. */
double fields_real(struct fields *f, const char *key, double low, double high, double fallback);

bool fields_bool(struct fields *f, const char *key, bool fallback);

/* dst: (size), NUL-terminated; the fallback may be NULL: required. Texts of size or more bytes
 * and texts with a NUL inside are errors. */
void fields_text(struct fields *f, const char *key, char *dst, size_t size, const char *fallback);

/* Up to max integers from one integer or an array of them; returns how many, 0 when absent. */
int fields_ints(struct fields *f, const char *key, int64_t low, int64_t high, int32_t *dst,
                int max);

/* Records a failure unless there was one before. */
void fields_fail(struct fields *f, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
