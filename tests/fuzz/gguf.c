/* Bytes as a GGUF model: container, metadata, vocabulary, and some rows of every tensor. */
#include "engine/gguf.h"

#include "engine/config.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/fuzz/driver.h"

static void read_all(struct source *src) {
    static float row[1 << 16];
    for (size_t i = 0; i < source_count(src); i++) {
        const struct source_tensor *t = source_at(src, i);
        if (t->cols > 1 << 16) continue;
        for (int64_t k = 0; k < t->rows && k < 8; k++)
            if (source_read_rows(src, t, k, 1, row, NULL) < 0) break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct error err;
    struct source_file file = {"model.gguf", data, size};
    struct source *src;
    if (source_open_memory(&src, &file, 1, &err) == 0) {
        read_all(src);
        source_close(src);
    }
    return 0;
}
