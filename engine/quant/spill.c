#include "engine/quant/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/error.h"

static int open_file(struct spill *s, const char *folder, struct error *err) {
    char path[4096];
    if (!folder) folder = getenv("TMPDIR");
    if (!folder || !*folder) folder = "/tmp";
    if (snprintf(path, sizeof path, "%s/gptqt-states-XXXXXX", folder) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: too long", folder);
    int fd = mkstemp(path);
    if (fd < 0) return error_set(err, -errno, "%s: %s", path, strerror(errno));
    unlink(path);
    int r = -posix_fallocate(fd, 0, (off_t)s->n_bytes);
    if (r < 0) {
        error_set(err, r, "%s: cannot hold %zu bytes of hidden states: %s", folder, s->n_bytes,
                  strerror(-r));
    } else {
        void *x = mmap(NULL, s->n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (x == MAP_FAILED) {
            r = error_set(err, -errno, "%s: cannot map: %s", folder, strerror(errno));
        } else {
            s->x = x;
            s->is_mapped = true;
        }
    }
    close(fd);
    return r;
}

int spill_open(struct spill *ret, size_t n, size_t memory, const char *folder, struct error *err) {
    struct spill s = {.n_bytes = n * sizeof *s.x};
    int r = 0;
    if (s.n_bytes > memory) {
        r = open_file(&s, folder, err);
    } else {
        s.x = calloc(n ? n : 1, sizeof *s.x);
        if (!s.x) r = error_set(err, -ENOMEM, "hidden states: out of memory");
    }
    if (r == 0) *ret = s;
    return r;
}

void spill_close(struct spill *s) {
    if (s->is_mapped)
        munmap(s->x, s->n_bytes);
    else
        free(s->x);
    *s = (struct spill){0};
}
