/* quantize_idle.h - refuses flags of gptqt-quantize that the others leave without an effect.
 *
 * Owns      nothing.
 * Borrows   the options' tables until the end of the program; the arguments during the call.
 * Thread    the main thread.
 * Fails     -EINVAL; the text names the flag and what it needs.
 * Cost      none to speak of.
 *
 * Flags that were typed are meant: what an effort sets may be of no use. A flag that scripts give to
 * every run is let through where it does no harm (--ranges with --pow2, --bits with --mixed NUMBER). */
#ifndef SERVER_QUANTIZE_IDLE_H
#define SERVER_QUANTIZE_IDLE_H

#include <stdbool.h>

struct argp_option;
struct error;
struct quantize_args;

enum { QUANTIZE_MAX_TYPED = 128 };

/* The long names of the flags on a command line, each once. */
struct quantize_typed {
    const char *names[QUANTIZE_MAX_TYPED];
    int n;
};

/* For a parser that was called with key; keys that are not in its table are passed over. */
void quantize_typed_add(struct quantize_typed *typed, const struct argp_option *table, int key);
bool quantize_typed_has(const struct quantize_typed *typed, const char *name);

int quantize_idle_check(const struct quantize_args *args, struct error *err);

#endif
