/* A main() for the drivers where there is no fuzzing engine: runs every file of some folders and
 * a fixed number of deterministic mutations of each. With an engine, build a driver without this
 * file: clang -fsanitize=fuzzer,address,undefined -I. tests/fuzz/NAME.c ... and give it the same
 * folders. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/driver.h"
#include "tests/support/random.h"

enum { MAX_BYTES = 1 << 20, PATH = 4096 };

struct input {
    uint8_t *bytes; /* room for 2 * MAX_BYTES */
    size_t n;
};

/* Near the front, where headers are, as often as anywhere. */
static size_t place(uint64_t *seed, size_t n) {
    size_t limit = random_next(seed) % 2 && n > 256 ? 256 : n;
    return random_next(seed) % limit;
}

static void overwrite(struct input *in, uint64_t *seed) {
    static const uint64_t values[] = {0,          1,          0x7f,       0x80,     0xff,
                                      0xffff,     0x7fffffff, 0x80000000, 1u << 20, UINT64_MAX,
                                      1ull << 62, 1ull << 63, INT64_MAX,  64,       UINT64_MAX - 7};
    static const size_t widths[] = {1, 2, 4, 8};
    uint64_t value = values[random_next(seed) % (sizeof values / sizeof *values)];
    size_t width = widths[random_next(seed) % 4], at = place(seed, in->n);
    if (width > in->n - at) width = in->n - at;
    memcpy(in->bytes + at, &value, width);
}

static void cut_out(struct input *in, uint64_t *seed) {
    size_t at = place(seed, in->n), n = 1 + random_next(seed) % 16;
    if (n > in->n - at) n = in->n - at;
    memmove(in->bytes + at, in->bytes + at + n, in->n - at - n);
    in->n -= n;
}

static void repeat(struct input *in, uint64_t *seed) {
    size_t at = place(seed, in->n), n = 1 + random_next(seed) % 64;
    if (n > in->n - at) n = in->n - at;
    memmove(in->bytes + at + n, in->bytes + at, in->n - at);
    in->n += n;
}

static void mutate(struct input *in, uint64_t *seed) {
    for (int i = random_range(seed, 1, 4); i > 0 && in->n; i--) {
        size_t at = place(seed, in->n);
        switch (random_next(seed) % 7) {
        case 0:
            in->bytes[at] ^= (uint8_t)(1u << random_next(seed) % 8);
            break;
        case 1:
            in->bytes[at] = (uint8_t)random_next(seed);
            break;
        case 2:
            in->bytes[at] = (uint8_t) "0123456789-.eE[]{},:\"\\ntf"[random_next(seed) % 25];
            break;
        case 3:
            in->n = at;
            break;
        case 4:
            cut_out(in, seed);
            break;
        case 5:
            repeat(in, seed);
            break;
        default:
            overwrite(in, seed);
            break;
        }
    }
}

/* Exactly n bytes on the heap, so that a sanitizer sees every step beyond them. */
static void run_once(const struct input *in) {
    uint8_t *exact = malloc(in->n ? in->n : 1);
    if (!exact) return;
    memcpy(exact, in->bytes, in->n);
    LLVMFuzzerTestOneInput(exact, in->n);
    free(exact);
}

static int run_file(const char *path, int n_mutations, struct input *in) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return -1;
    }
    uint8_t *original = malloc(MAX_BYTES);
    size_t n = original ? fread(original, 1, MAX_BYTES, f) : 0;
    fclose(f);
    /* The name stands last in the log when a driver crashes. */
    fprintf(stderr, "%s\n", path);
    uint64_t seed = n;
    for (int i = 0; original && i <= n_mutations; i++) {
        memcpy(in->bytes, original, n);
        in->n = n;
        if (i) mutate(in, &seed);
        run_once(in);
    }
    free(original);
    return original ? 0 : -1;
}

static int run_folder(const char *folder, int n_mutations, struct input *in) {
    struct dirent **entries;
    int n = scandir(folder, &entries, NULL, alphasort), n_files = 0, r = 0;
    for (int i = 0; i < n; i++) {
        char path[PATH];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        if (*entries[i]->d_name != '.' && !r) {
            r = run_file(path, n_mutations, in);
            n_files++;
        }
        free(entries[i]);
    }
    if (n >= 0) free(entries);
    if (!n_files) fprintf(stderr, "%s: no inputs\n", folder);
    return n_files ? r : -1;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s MUTATIONS FOLDER...\n", argv[0]);
        return 2;
    }
    struct input in = {malloc(2 * MAX_BYTES), 0};
    if (!in.bytes) return 1;
    int r = 0;
    for (int i = 2; i < argc && !r; i++) r = run_folder(argv[i], atoi(argv[1]), &in);
    free(in.bytes);
    return r ? 1 : 0;
}
