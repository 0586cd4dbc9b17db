/* madvise() is not in POSIX, and glibc's posix_madvise() ignores POSIX_MADV_DONTNEED. */
#define _DEFAULT_SOURCE
#include "engine/map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/error.h"

static const uint8_t nothing[1];

static int map_descriptor(struct map *ret, int fd, const char *path, struct error *err) {
    struct stat st;
    if (fstat(fd, &st) < 0) return error_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return error_set(err, -EINVAL, "%s: is not a regular file", path);
    if ((uint64_t)st.st_size > SIZE_MAX / 2) return error_set(err, -EFBIG, "%s: too large", path);
    struct map map = {nothing, (size_t)st.st_size, false};
    if (map.size) {
        void *at = mmap(NULL, map.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (at == MAP_FAILED)
            return error_set(err, -errno, "%s: cannot map %zu bytes: %s", path, map.size,
                             strerror(errno));
        map.bytes = at;
        map.is_mapped = true;
    }
    *ret = map;
    return 0;
}

int map_open(struct map *ret, const char *path, struct error *err) {
    /* O_NONBLOCK: a FIFO must be refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return error_set(err, -errno, "%s: %s", path, strerror(errno));
    int r = map_descriptor(ret, fd, path, err);
    close(fd);
    return r;
}

void map_wrap(struct map *ret, const void *bytes, size_t size) {
    *ret = (struct map){size ? bytes : nothing, size, false};
}

void map_release(const struct map *map, size_t offset, size_t n) {
    if (!map->is_mapped || offset >= map->size) return;
    if (n > map->size - offset) n = map->size - offset;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t first = (offset + page - 1) / page * page, end = offset + n;
    /* The last page of the file belongs to nobody else. */
    if (end < map->size) end = end / page * page;
    if (first < end)
        (void)madvise((void *)(uintptr_t)(map->bytes + first), end - first, MADV_DONTNEED);
}

void map_close(struct map *map) {
    if (map->is_mapped) munmap((void *)(uintptr_t)map->bytes, map->size);
    *map = (struct map){nothing, 0, false};
}
