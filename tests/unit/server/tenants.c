#include "server/tenants.h"

#include <criterion/criterion.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

static struct tenants *fresh(void) {
    struct tenants *t;
    cr_assert(tenants_new(&t, 42, NULL) == 0);
    return t;
}

static void set(struct tenants *t, const char *text) {
    struct keys *keys;
    struct error err;
    cr_assert(keys_parse(&keys, text, strlen(text), "f", &err) == 0, "%s", err.text);
    cr_assert(tenants_set_keys(t, keys, 0, &err) == 0, "%s", err.text);
}

static int who(const struct tenants *t, const char *key) {
    return tenants_find(t, key, strlen(key));
}

Test(tenants, without_keys_everybody_is_one_of_a_bounded_table) {
    struct tenants *t = fresh(), *other;
    int differ = 0;
    cr_assert(tenants_new(&other, 43, NULL) == 0);
    cr_expect(tenants_of_id(t, NULL) == 0 && tenants_of_id(t, "") == 0);
    for (int i = 0; i < 5000; i++) {
        char id[16];
        snprintf(id, sizeof id, "user-%d", i);
        int tenant = tenants_of_id(t, id);
        cr_assert(tenant > 0 && tenant < ENGINE_MAX_TENANTS && tenant == tenants_of_id(t, id));
        differ += tenant != tenants_of_id(other, id);
    }
    cr_expect(differ > 4900, "another secret gives other places");
    cr_expect(t->list[0].salt == 0 && t->list[5].salt == 0 && t->list[0].priority == INT_MIN);
    cr_expect(who(t, "any") < 0);
    tenants_free(other);
    tenants_free(t);
}

Test(tenants, each_key_is_its_own) {
    struct tenants *t = fresh();
    set(t, "a ka weight=2\nb kb priority=3\n");
    int a = who(t, "ka"), b = who(t, "kb");
    cr_expect(a > 0 && b > 0 && a != b && who(t, "kc") < 0);
    cr_expect(t->list[a].weight > 1.9f && t->list[b].priority == 3);
    cr_expect(t->list[a].salt && t->list[b].salt && t->list[a].salt != t->list[b].salt);
    tenants_free(t);
}

Test(tenants, reading_again_keeps_places_and_what_was_used) {
    struct tenants *t = fresh();
    set(t, "a ka tokens-per-minute=100\nb kb\n");
    int a = who(t, "ka"), b = who(t, "kb");
    uint64_t salt = t->list[a].salt;
    cr_assert(quota_take(&t->list[a].quota, 100, 0).limit == QUOTA_FITS);
    set(t, "b kb\nc kc\nanna ka tokens-per-minute=100 concurrency=5\n");
    cr_expect(who(t, "ka") == a && who(t, "kb") == b && t->list[a].salt == salt);
    cr_expect(!strcmp(t->list[a].name, "anna") && t->list[a].quota.concurrency == 5);
    cr_expect(quota_check(&t->list[a].quota, 1, 0).limit == QUOTA_TOKENS);
    cr_expect(t->list[a].quota.n_running == 1);
    tenants_free(t);
}

Test(tenants, a_removed_key_keeps_its_place_while_it_runs) {
    struct tenants *t = fresh();
    char *text = malloc(KEYS_MAX * 16);
    set(t, "a ka\n");
    int a = who(t, "ka");
    quota_take(&t->list[a].quota, 1, 0);
    for (int round = 0; round < 3; round++) {
        size_t n = 0;
        for (int i = 0; i < KEYS_MAX; i++)
            n += (size_t)snprintf(text + n, 16, "n%d %d-%d\n", i, round, i);
        set(t, text);
        cr_assert(who(t, "ka") < 0);
        for (int i = 0; i < KEYS_MAX; i++) cr_assert(t->tenant_of[i] != a);
    }
    quota_settle(&t->list[a].quota, 1, 1, 0);
    set(t, "a ka\n");
    cr_expect(who(t, "ka") == a);
    free(text);
    tenants_free(t);
}

Test(tenants, without_a_place_nothing_changes) {
    struct tenants *t = fresh();
    struct keys *keys;
    struct error err;
    set(t, "a ka\n");
    int a = who(t, "ka");
    for (int i = 1; i < ENGINE_MAX_TENANTS; i++) quota_take(&t->list[i].quota, 1, 0);
    cr_assert(keys_parse(&keys, "b kb", 4, "f", &err) == 0);
    cr_expect(tenants_set_keys(t, keys, 0, &err) < 0);
    cr_expect(who(t, "ka") == a && t->list[a].current);
    keys_free(keys);
    tenants_free(t);
}
