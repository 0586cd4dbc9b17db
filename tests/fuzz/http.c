/* Bytes as what a connection sends. The verdict must not depend on how they come: whole, and byte
 * by byte; no more goes on than came, and a fault stays. */
#include "server/http_guard.h"

#include <string.h>

#include "server/api/api_error.h"
#include "tests/fuzz/driver.h"

static void check(int promise) {
    if (!promise) __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct http_guard whole = {0}, single = {0};
    const char *bytes = (const char *)data;
    size_t good = http_guard_feed(&whole, bytes, size), passed = 0;
    check(good <= size && (whole.fault || good == size));
    for (size_t i = 0; i < size; i++) passed += http_guard_feed(&single, bytes + i, 1);
    check(!whole.fault == !single.fault && passed >= good && passed <= size);
    check(http_guard_part(&whole) == http_guard_part(&single));
    if (!whole.fault) return 0;
    check(whole.fault == single.fault && whole.kind == single.kind);
    check(api_error_status(whole.kind) >= 400);
    check(http_guard_feed(&whole, bytes, size) == 0);
    return 0;
}
