#include "server/tenants.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

int tenants_new(struct tenants **ret, uint64_t secret, struct error *err) {
    struct tenants *t = calloc(1, sizeof *t);
    if (!t) return error_set(err, -ENOMEM, "tenants: out of memory");
    t->secret = secret;
    for (int i = 0; i < ENGINE_MAX_TENANTS; i++)
        t->list[i] = (struct tenant){.name = "", .weight = 1, .priority = INT_MIN};
    *ret = t;
    return 0;
}

void tenants_free(struct tenants *t) {
    if (!t) return;
    keys_free(t->keys);
    free(t);
}

/* Whoever knows another's digest knows as much as its key; so nobody can ask for its salt. */
static uint64_t salt_of(const char *digest) {
    struct sha256 hash;
    char hex[SHA256_HEX];
    sha256_init(&hash);
    sha256_add(&hash, "salt:", 5);
    sha256_add(&hash, digest, SHA256_HEX - 1);
    sha256_end(&hash, hex);
    hex[16] = 0;
    uint64_t salt = strtoull(hex, NULL, 16);
    return salt ? salt : 1;
}

/* Where this key's tenant is, or -1. */
static int place_of(const struct tenants *t, const char *digest) {
    for (int i = 1; i < ENGINE_MAX_TENANTS; i++)
        if (t->list[i].digest[0] && !strcmp(t->list[i].digest, digest)) return i;
    return -1;
}

/* A place for a new key. Who still runs keeps his; one that nobody had is better than one whose
 * requests may be about to begin. */
static int free_place(const struct tenants *t, const bool *taken) {
    int left = -1;
    for (int i = 1; i < ENGINE_MAX_TENANTS; i++) {
        const struct tenant *tenant = &t->list[i];
        if (taken[i] || tenant->quota.n_running) continue;
        if (!tenant->digest[0]) return i;
        left = i;
    }
    return left;
}

/* Known keys first, so that a new one gets none of their places. */
static int choose_places(const struct tenants *t, const struct keys *keys, int *places) {
    bool taken[ENGINE_MAX_TENANTS] = {false};
    for (int i = 0; i < keys->n; i++) {
        places[i] = place_of(t, keys->list[i].digest);
        if (places[i] > 0) taken[places[i]] = true;
    }
    for (int i = 0; i < keys->n; i++) {
        if (places[i] > 0) continue;
        places[i] = free_place(t, taken);
        if (places[i] < 0) return -ENOSPC;
        taken[places[i]] = true;
    }
    return 0;
}

static void settle_in(struct tenant *tenant, const struct key *key, int64_t now_ns) {
    if (strcmp(tenant->digest, key->digest) != 0) *tenant = (struct tenant){0};
    memcpy(tenant->digest, key->digest, sizeof tenant->digest);
    tenant->name = key->name;
    tenant->weight = key->weight;
    tenant->priority = key->priority;
    tenant->salt = salt_of(key->digest);
    tenant->current = true;
    quota_set(&tenant->quota, &key->limits, now_ns);
}

/* Decides all places before it changes one, so that a refusal changes nothing. */
int tenants_set_keys(struct tenants *t, struct keys *keys, int64_t now_ns, struct error *err) {
    int places[KEYS_MAX], r = choose_places(t, keys, places);
    if (r < 0) return error_set(err, r, "too many requests of removed keys still run");
    for (int i = 1; i < ENGINE_MAX_TENANTS; i++) {
        t->list[i].current = false;
        t->list[i].name = "";
    }
    for (int i = 0; i < keys->n; i++) {
        settle_in(&t->list[places[i]], &keys->list[i], now_ns);
        t->tenant_of[i] = places[i];
    }
    keys_free(t->keys);
    t->keys = keys;
    return 0;
}

int tenants_find(const struct tenants *t, const char *shown, size_t n) {
    int key = t->keys ? keys_find(t->keys, shown, n) : -1;
    return key < 0 ? -1 : t->tenant_of[key];
}

/* FNV-1a over a secret start. */
int tenants_of_id(const struct tenants *t, const char *id) {
    uint64_t hash = 0xcbf29ce484222325u ^ t->secret;
    if (!id || !*id) return 0;
    for (; *id; id++) hash = (hash ^ (unsigned char)*id) * 0x100000001b3u;
    hash ^= hash >> 32;
    return 1 + (int)(hash % (ENGINE_MAX_TENANTS - 1));
}
