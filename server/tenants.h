/* tenants.h - knows whose request it is: a key's, or a fairness id's.
 *
 * Owns      the keys it was given, and what each tenant has used, until tenants_free().
 * Borrows   texts during the calls.
 * Thread    the loop's; pure: the caller tells the time.
 * Fails     -ENOMEM; -ENOSPC when a new key finds no place, as removed ones still run.
 * Cost      O(keys) to find one by what was shown, else O(1).
 *
 * A tenant is a number below ENGINE_MAX_TENANTS, under which the engine gives shares. With keys
 * each is a tenant, and stays the same one, with what it has used, when the keys are read
 * again. Without keys everybody may come in: 0 is who names no fairness id, and ids are hashed
 * into the other numbers, so no client can make the table grow; two that meet share. */
#ifndef SERVER_TENANTS_H
#define SERVER_TENANTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "server/keys.h"

struct error;

struct tenant {
    const char *name; /* of its key, or "" */
    struct quota quota;
    float weight;
    int priority;
    uint64_t salt; /* computed prompt beginnings are shared within a tenant only; 0 = with all */
    char digest[SHA256_HEX]; /* "" = the place is free */
    bool current;            /* its key is in force */
};

struct tenants {
    struct keys *keys;       /* NULL = everybody */
    int tenant_of[KEYS_MAX]; /* of each key */
    uint64_t secret;         /* so that nobody can choose whose number he shares */
    struct tenant list[ENGINE_MAX_TENANTS];
};

int tenants_new(struct tenants **ret, uint64_t secret, struct error *err);
void tenants_free(struct tenants *t); /* NULL is allowed */

/* Takes the keys on success. */
int tenants_set_keys(struct tenants *t, struct keys *keys, int64_t now_ns, struct error *err);

/* The tenant of the key that was shown, or -1. */
int tenants_find(const struct tenants *t, const char *shown, size_t n);

/* The tenant of a fairness id; NULL and "" are nobody's, 0. */
int tenants_of_id(const struct tenants *t, const char *id);

#endif
