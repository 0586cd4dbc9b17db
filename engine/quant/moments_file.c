#include "engine/quant/moments_file.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/atomic_file.h"
#include "engine/map.h"
#include "kernels/error.h"

struct header {
    char magic[8];
    int32_t layer;
    int32_t width[INPUT_COUNT];
    char digest[SHA256_HEX + 3]; /* of the numbers, then zeros up to a multiple of four bytes */
};

static const char magic[8] = "GPTQTMM1";

static size_t numbers(int width) { return (size_t)width * ((size_t)width + 1) / 2; }

static size_t size_of(const struct moments_file *f) {
    size_t n = sizeof(struct header);
    for (int i = 0; i < INPUT_COUNT; i++) n += numbers(f->width[i]) * sizeof(double);
    return n;
}

int moments_file_name(struct moments_file *ret, const char *folder, const char key[SHA256_HEX],
                      int layer, const int width[INPUT_COUNT], struct error *err) {
    struct moments_file f = {.layer = layer};
    int n = snprintf(f.path, sizeof f.path, "%s/%.*s-%03d.moments", folder, MOMENTS_FILE_KEY, key,
                     layer);
    if (n < 0 || (size_t)n >= sizeof f.path)
        return error_set(err, -ENAMETOOLONG, "moments: %.80s...: too long a name", folder);
    memcpy(f.width, width, sizeof f.width);
    *ret = f;
    return 0;
}

bool moments_file_there(const struct moments_file *f) {
    struct stat s;
    return stat(f->path, &s) == 0 && S_ISREG(s.st_mode) && (size_t)s.st_size == size_of(f);
}

/* Rows of the upper triangle, one after the other, to both. */
static int write_triangle(struct atomic_file *file, struct sha256 *sum, const double *h, int n,
                          struct error *err) {
    int r = 0;
    for (size_t i = 0, side = (size_t)n; r == 0 && i < side; i++) {
        size_t bytes = (side - i) * sizeof *h;
        if (file) r = atomic_file_write(file, h + i * side + i, bytes, err);
        if (sum) sha256_add(sum, h + i * side + i, bytes);
    }
    return r;
}

int moments_file_write(const struct moments_file *f, double *const h[INPUT_COUNT],
                       struct error *err) {
    struct atomic_file file;
    struct header header = {.layer = f->layer};
    struct sha256 sum;
    memcpy(header.magic, magic, sizeof magic);
    memcpy(header.width, f->width, sizeof header.width);
    sha256_init(&sum);
    for (int i = 0; i < INPUT_COUNT; i++)
        if (h[i]) write_triangle(NULL, &sum, h[i], f->width[i], NULL);
    sha256_end(&sum, header.digest);
    int r = atomic_file_open(&file, f->path, err);
    if (r < 0) return r;
    r = atomic_file_write(&file, &header, sizeof header, err);
    for (int i = 0; r == 0 && i < INPUT_COUNT; i++)
        if (h[i]) r = write_triangle(&file, NULL, h[i], f->width[i], err);
    if (r == 0) r = atomic_file_commit(&file, err);
    atomic_file_close(&file);
    return r;
}

static int check(const struct moments_file *f, const struct map *map, struct error *err) {
    struct header header;
    struct sha256 sum;
    char digest[SHA256_HEX];
    if (map->size != size_of(f))
        return error_set(err, -EINVAL, "%s: %zu bytes instead of %zu", f->path, map->size,
                         size_of(f));
    memcpy(&header, map->bytes, sizeof header);
    if (memcmp(header.magic, magic, sizeof magic) != 0 || header.layer != f->layer ||
        memcmp(header.width, f->width, sizeof header.width) != 0)
        return error_set(err, -EINVAL, "%s: not the moments of block %d", f->path, f->layer);
    sha256_init(&sum);
    sha256_add(&sum, map->bytes + sizeof header, map->size - sizeof header);
    sha256_end(&sum, digest);
    if (memcmp(digest, header.digest, sizeof digest) != 0)
        return error_set(err, -EINVAL, "%s: damaged; remove it", f->path);
    return 0;
}

static const uint8_t *read_triangle(const uint8_t *at, double *h, int n) {
    for (size_t i = 0, side = (size_t)n; i < side; i++) {
        memcpy(h + i * side + i, at, (side - i) * sizeof *h);
        at += (side - i) * sizeof *h;
        for (size_t j = i + 1; j < side; j++) h[j * side + i] = h[i * side + j];
    }
    return at;
}

int moments_file_read(const struct moments_file *f, double *const h[INPUT_COUNT],
                      struct error *err) {
    struct map map;
    int r = map_open(&map, f->path, err);
    if (r < 0) return r;
    r = check(f, &map, err);
    const uint8_t *at = map.bytes + sizeof(struct header);
    for (int i = 0; r == 0 && i < INPUT_COUNT; i++)
        if (h[i]) at = read_triangle(at, h[i], f->width[i]);
    map_close(&map);
    return r;
}
