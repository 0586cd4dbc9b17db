#include "engine/atomic_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/error.h"

static const char mark[] = ".tmp.";

static int failed(const struct atomic_file *file, const char *doing, struct error *err) {
    int e = errno;
    return error_set(err, -e, "%s: cannot %s: %s", file->path, doing, strerror(e));
}

int atomic_file_open(struct atomic_file *ret, const char *path, struct error *err) {
    struct atomic_file file = {.fd = -1};
    int r = 0;
    size_t n = strlen(path) + sizeof mark + 24;
    file.path = strdup(path);
    file.temporary = malloc(n);
    if (!file.path || !file.temporary) {
        r = error_set(err, -ENOMEM, "%s: out of memory", path);
        goto fail;
    }
    /* The process id keeps two writers of one path apart. */
    snprintf(file.temporary, n, "%s%s%ld", path, mark, (long)getpid());
    file.fd = open(file.temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file.fd < 0) {
        r = failed(&file, "create", err);
        goto fail;
    }
    *ret = file;
    return 0;
fail:
    free(file.path);
    free(file.temporary);
    return r;
}

int atomic_file_write(struct atomic_file *file, const void *bytes, size_t n, struct error *err) {
    const char *p = bytes;
    while (n) {
        /* Linux moves at most 2 GB in one call anyway. */
        ssize_t done = write(file->fd, p, n < (1u << 30) ? n : (1u << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return failed(file, "write", err);
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

static int sync_parent(const char *path, struct error *err) {
    const char *slash = strrchr(path, '/');
    if (!slash) return atomic_file_sync_directory(".", err);
    char *parent = strndup(path, slash == path ? 1 : (size_t)(slash - path));
    if (!parent) return error_set(err, -ENOMEM, "%s: out of memory", path);
    int r = atomic_file_sync_directory(parent, err);
    free(parent);
    return r;
}

int atomic_file_commit(struct atomic_file *file, struct error *err) {
    int r = 0;
    if (fsync(file->fd) < 0) {
        r = failed(file, "write", err);
        goto out;
    }
    /* NFS reports a full disk at close. */
    int closed = close(file->fd);
    file->fd = -1;
    if (closed < 0) {
        r = failed(file, "write", err);
        unlink(file->temporary);
        goto out;
    }
    if (rename(file->temporary, file->path) < 0) {
        r = failed(file, "rename into place", err);
        unlink(file->temporary);
        goto out;
    }
    r = sync_parent(file->path, err);
out:
    atomic_file_close(file);
    return r;
}

void atomic_file_close(struct atomic_file *file) {
    if (file->fd >= 0) {
        close(file->fd);
        unlink(file->temporary);
    }
    free(file->path);
    free(file->temporary);
    *file = (struct atomic_file){.fd = -1};
}

int atomic_file_save(const char *path, const void *bytes, size_t n, struct error *err) {
    struct atomic_file file;
    int r = atomic_file_open(&file, path, err);
    if (r < 0) return r;
    r = atomic_file_write(&file, bytes, n, err);
    if (r < 0) {
        atomic_file_close(&file);
        return r;
    }
    return atomic_file_commit(&file, err);
}

int atomic_file_sync_directory(const char *path, struct error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return error_set(err, -errno, "%s: %s", path, strerror(errno));
    /* Some file systems cannot sync a directory and say EINVAL; there is nothing more to do. */
    int r = fsync(fd) < 0 && errno != EINVAL ? -errno : 0;
    close(fd);
    return r < 0 ? error_set(err, r, "%s: cannot sync: %s", path, strerror(-r)) : 0;
}

bool atomic_file_is_temporary(const char *name) { return strstr(name, mark) != NULL; }

void atomic_file_sweep(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    char *parent = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    DIR *list = parent ? opendir(parent) : NULL;
    /* What cannot be removed is only clutter. */
    for (const struct dirent *e; list && (e = readdir(list));)
        if (strncmp(e->d_name, name, n) == 0 && strncmp(e->d_name + n, mark, strlen(mark)) == 0)
            unlinkat(dirfd(list), e->d_name, 0);
    if (list) closedir(list);
    free(parent);
}
