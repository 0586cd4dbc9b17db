/* Bytes as a file of API keys. What is accepted keeps the promises of its header. */
#include "server/keys.h"

#include <string.h>

#include "kernels/error.h"
#include "tests/fuzz/driver.h"

static void check(int promise) {
    if (!promise) __builtin_trap();
}

static void check_keys(const struct keys *keys) {
    check(keys->n >= 1 && keys->n <= KEYS_MAX);
    for (int i = 0; i < keys->n; i++) {
        const struct key *k = &keys->list[i];
        check(k->name[0] && strlen(k->name) <= KEYS_MAX_NAME);
        check(strspn(k->digest, "0123456789abcdef") == SHA256_HEX - 1);
        check(k->weight >= 0.001f && k->weight <= 1000);
        check(k->limits.concurrency >= 0 && k->limits.tokens >= 0 && k->limits.requests >= 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct keys *keys = NULL;
    struct error err = {""};
    if (keys_parse(&keys, (const char *)data, size, "f", &err) == 0)
        check_keys(keys);
    else
        check(!keys && err.text[0]);
    keys_free(keys);
    return 0;
}
