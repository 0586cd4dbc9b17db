/* keys.h - reads a file of API keys, and finds the one that a client shows.
 *
 * Owns      struct keys until keys_free().
 * Borrows   texts during the calls.
 * Thread    any; pure: no file, no clock.
 * Fails     -EINVAL with a line "FILE:LINE: what is wrong", -ENOMEM.
 * Cost      parsing O(bytes); finding one digest of what was shown and O(keys) comparisons.
 *
 * A line is "NAME KEY [option=value ...]"; # begins a comment. KEY is the key itself or the
 * SHA-256 of it as sha256:HEX, so that the file need not hold secrets. Only digests are kept,
 * and what a client shows is compared with all of them, in a time that does not tell which
 * was nearest. */
#ifndef SERVER_KEYS_H
#define SERVER_KEYS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/sha256.h"
#include "server/quota.h"

struct error;

enum { KEYS_MAX = 1000, KEYS_MAX_NAME = 63, KEYS_MAX_SECRET = 512 };

struct key {
    char name[KEYS_MAX_NAME + 1];
    char digest[SHA256_HEX];
    struct quota_limits limits;
    float weight; /* of its share; 1 by default */
    int priority; /* requests cannot be more urgent (lower) than this; 0 by default */
};

struct keys {
    struct key *list; /* (n) */
    int n;
};

/* The text of a file called name. No key at all is an error: nobody could use the server. */
int keys_parse(struct keys **ret, const char *text, size_t n, const char *name, struct error *err);

/* The same, and one more key without limits, called "default"; text may be NULL. */
int keys_parse_with(struct keys **ret, const char *text, size_t n, const char *name,
                    const char *secret, struct error *err);
void keys_free(struct keys *keys); /* NULL is allowed */

/* The key that was shown, or -1. */
int keys_find(const struct keys *keys, const char *shown, size_t n);

/* The digest of a secret, in hexadecimal digits. */
void keys_digest(char ret[SHA256_HEX], const char *secret, size_t n);

/* Overwrites what held a secret. */
void keys_wipe(void *bytes, size_t n);

#endif
