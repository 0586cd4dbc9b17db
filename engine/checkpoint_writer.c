#include "engine/checkpoint_writer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/atomic_file.h"
#include "engine/checkpoint_assemble.h"
#include "engine/json_guard.h"
#include "kernels/error.h"

/* DESIGN. DIR.partial holds
 *     settings.json        what is being made; locked by the writer
 *     tensors/NAME         one safetensors file for each tensor added
 *     files/NAME           the other files, as they will be
 *     done/                the checkpoint while finish() assembles it
 *     old/                 the checkpoint that DIR was, between the two renames of finish()
 * finish() writes done/, moves DIR to old/, renames done/ to DIR and removes the rest. A next run
 * that finds old/ without DIR was preceded by a kill between the renames and moves it back. */

enum { MAX_NAME = 200 };

static const uint64_t default_shard_bytes = 4000000000u;

struct checkpoint_writer {
    char *dir, *partial;
    uint64_t shard_bytes;
    bool force;
    int lock; /* descriptor of settings.json; -1 = none */
};

/* "base/a/b", to be freed; b may be NULL. */
static char *join(const char *base, const char *a, const char *b) {
    size_t n = strlen(base) + strlen(a) + (b ? strlen(b) + 1 : 0) + 2;
    char *path = malloc(n);
    if (path) snprintf(path, n, b ? "%s/%s/%s" : "%s/%s", base, a, b);
    return path;
}

static int no_memory(const struct checkpoint_writer *w, struct error *err) {
    return error_set(err, -ENOMEM, "%s: out of memory", w->dir ? w->dir : "checkpoint");
}

static int failed(const char *path, const char *doing, struct error *err) {
    int e = errno;
    return error_set(err, -e, "%s: cannot %s: %s", path, doing, strerror(e));
}

/* Calls visit for each entry but "." and ".."; stops at the first that fails. */
static int each_entry(const char *path, int (*visit)(void *arg, const char *name, struct error *),
                      void *arg, struct error *err) {
    DIR *dir = opendir(path);
    if (!dir) return failed(path, "open", err);
    int r = 0;
    for (const struct dirent *e; !r && (e = readdir(dir));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            r = visit(arg, e->d_name, err);
    closedir(dir);
    return r;
}

static int remove_entry(void *arg, const char *name, struct error *err) {
    char *path = join(arg, name, NULL);
    if (!path) return error_set(err, -ENOMEM, "%s: out of memory", (char *)arg);
    int r = unlink(path) < 0 ? failed(path, "remove", err) : 0;
    free(path);
    return r;
}

/* A directory of plain files, as those made here are. */
static int remove_flat(const char *path, struct error *err) {
    int r = each_entry(path, remove_entry, (void *)(uintptr_t)path, err);
    if (r == -ENOENT) return 0;
    if (!r && rmdir(path) < 0) return failed(path, "remove", err);
    return r;
}

static int remove_part(const struct checkpoint_writer *w, const char *name, struct error *err) {
    char *path = join(w->partial, name, NULL);
    int r = path ? remove_flat(path, err) : no_memory(w, err);
    free(path);
    return r;
}

static int make_part(const struct checkpoint_writer *w, const char *name, struct error *err) {
    char *path = join(w->partial, name, NULL);
    if (!path) return no_memory(w, err);
    int r = mkdir(path, 0777) < 0 && errno != EEXIST ? failed(path, "create", err) : 0;
    free(path);
    return r;
}

/* A checkpoint is a directory whose config.json carries our quantization_config. */
static bool is_checkpoint(const char *dir) {
    static const struct json_guard_limits limits = {.max_depth = 16, .max_items = 1u << 16};
    char *path = join(dir, "config.json", NULL);
    struct map map;
    bool is = false;
    if (path && map_open(&map, path, NULL) == 0) {
        json_t *root = NULL;
        if (json_guard_parse(&root, map.bytes, map.size, &limits, path, NULL) == 0) {
            const json_t *q = json_object_get(root, "quantization_config");
            const char *method = json_string_value(json_object_get(q, "quant_method"));
            is = method && !strcmp(method, "gptqt");
            json_decref(root);
        }
        map_close(&map);
    }
    free(path);
    return is;
}

static int not_empty(void *arg, const char *name, struct error *err) {
    (void)name;
    return error_set(err, -EEXIST, "%s: exists and is not a checkpoint", (const char *)arg);
}

static int check_target(const struct checkpoint_writer *w, struct error *err) {
    struct stat st;
    if (stat(w->dir, &st) < 0) return errno == ENOENT ? 0 : failed(w->dir, "open", err);
    if (w->force || is_checkpoint(w->dir)) return 0;
    if (!S_ISDIR(st.st_mode)) return not_empty(w->dir, "", err);
    return each_entry(w->dir, not_empty, w->dir, err);
}

/* Locks settings.json, whose text is compared later. */
static int lock_partial(struct checkpoint_writer *w, struct error *err) {
    char *path = join(w->partial, "settings.json", NULL);
    if (!path) return no_memory(w, err);
    int r = 0;
    w->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (w->lock < 0)
        r = failed(path, "open", err);
    else if (fcntl(w->lock, F_SETLK, &whole) < 0)
        r = error_set(err, -EBUSY, "%s: another process is writing this checkpoint", w->dir);
    free(path);
    return r;
}

/* The text that settings.json holds equals settings; a short read is another text. */
static bool same_settings(const struct checkpoint_writer *w, const char *settings) {
    size_t n = strlen(settings);
    char *text = malloc(n + 1);
    bool same = text && pread(w->lock, text, n + 1, 0) == (ssize_t)n && !memcmp(text, settings, n);
    free(text);
    return same;
}

/* The lock's file is rewritten in place: renamed over, it would be another file. It is emptied
 * before anything is removed, so that settings never stand beside parts of another run. */
static int start_afresh(struct checkpoint_writer *w, const char *settings, struct error *err) {
    if (ftruncate(w->lock, 0) < 0 || fsync(w->lock) < 0) return failed(w->partial, "write", err);
    int r = remove_part(w, "tensors", err);
    if (!r) r = remove_part(w, "files", err);
    if (r < 0) return r;
    size_t n = strlen(settings);
    ssize_t done = pwrite(w->lock, settings, n, 0);
    if (done >= 0 && (size_t)done != n) errno = ENOSPC;
    if (done < 0 || (size_t)done != n || fsync(w->lock) < 0)
        return failed(w->partial, "write settings.json", err);
    return 0;
}

static int restore_old(const struct checkpoint_writer *w, struct error *err) {
    char *old = join(w->partial, "old", NULL);
    if (!old) return no_memory(w, err);
    int r = 0;
    if (access(w->dir, F_OK) < 0 && access(old, F_OK) == 0 && rename(old, w->dir) < 0)
        r = failed(w->dir, "restore", err);
    free(old);
    return r;
}

static int open_partial(struct checkpoint_writer *w, const char *settings, struct error *err) {
    if (mkdir(w->partial, 0777) < 0 && errno != EEXIST) return failed(w->partial, "create", err);
    int r = lock_partial(w, err);
    if (!r && !same_settings(w, settings)) r = start_afresh(w, settings, err);
    if (!r) r = restore_old(w, err);
    if (!r) r = remove_part(w, "done", err);
    if (!r) r = make_part(w, "tensors", err);
    if (!r) r = make_part(w, "files", err);
    if (!r) r = atomic_file_sync_directory(w->partial, err);
    return r;
}

int checkpoint_writer_open(struct checkpoint_writer **ret, const char *dir,
                           const struct checkpoint_writer_options *options, struct error *err) {
    struct checkpoint_writer *w = calloc(1, sizeof *w);
    if (!w) return error_set(err, -ENOMEM, "checkpoint: out of memory");
    w->lock = -1;
    w->force = options->force;
    w->shard_bytes = options->shard_bytes ? options->shard_bytes : default_shard_bytes;
    int r = 0;
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') n--;
    w->dir = strndup(dir, n);
    w->partial = malloc(n + sizeof ".partial");
    if (!w->dir || !w->partial) {
        r = no_memory(w, err);
        goto fail;
    }
    snprintf(w->partial, n + sizeof ".partial", "%s.partial", w->dir);
    r = check_target(w, err);
    if (!r) r = open_partial(w, options->settings, err);
    if (r < 0) goto fail;
    *ret = w;
    return 0;
fail:
    checkpoint_writer_close(w);
    return r;
}

int checkpoint_writer_check(const char *dir, bool force, struct error *err) {
    struct checkpoint_writer w = {.dir = strdup(dir), .force = force};
    int r = w.dir ? check_target(&w, err) : no_memory(&w, err);
    free(w.dir);
    return r;
}

void checkpoint_writer_close(struct checkpoint_writer *w) {
    if (!w) return;
    if (w->lock >= 0) close(w->lock);
    free(w->dir);
    free(w->partial);
    free(w);
}

static bool is_file_name(const char *name) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789._-";
    size_t n = strlen(name);
    return n && n <= MAX_NAME && *name != '.' && strspn(name, allowed) == n &&
           !atomic_file_is_temporary(name);
}

/* Path of the part of that name, to be freed; NULL when there is none. */
static char *find_part(const struct checkpoint_writer *w, const char *name) {
    static const char *const folders[] = {"tensors", "files"};
    for (int i = 0; i < 2 && is_file_name(name); i++) {
        char *path = join(w->partial, folders[i], name);
        if (path && access(path, F_OK) == 0) return path;
        free(path);
    }
    return NULL;
}

bool checkpoint_writer_has(const struct checkpoint_writer *w, const char *name) {
    char *path = find_part(w, name);
    free(path);
    return path != NULL;
}

int checkpoint_writer_map(const struct checkpoint_writer *w, const char *name, struct map *ret,
                          struct error *err) {
    char *path = find_part(w, name);
    if (!path) return error_set(err, -ENOENT, "%s: '%.100s' has not been written", w->dir, name);
    int r = map_open(ret, path, err);
    free(path);
    return r;
}

static int part_path(char **ret, const struct checkpoint_writer *w, const char *folder,
                     const char *name, struct error *err) {
    if (!is_file_name(name))
        return error_set(err, -EINVAL, "'%.100s': is no name for a file of a checkpoint", name);
    *ret = join(w->partial, folder, name);
    return *ret ? 0 : no_memory(w, err);
}

int checkpoint_writer_add(struct checkpoint_writer *w, const struct safetensors_tensor *tensor,
                          struct error *err) {
    char *path;
    int r = part_path(&path, w, "tensors", tensor->name, err);
    if (r < 0) return r;
    r = safetensors_write(path, tensor, 1, err);
    free(path);
    return r;
}

int checkpoint_writer_add_file(struct checkpoint_writer *w, const char *name, const void *bytes,
                               size_t n, struct error *err) {
    char *path;
    int r = part_path(&path, w, "files", name, err);
    if (r < 0) return r;
    r = atomic_file_save(path, bytes, n, err);
    free(path);
    return r;
}

static int edit_config(json_t **ret, const char *config, size_t n, const char *quantization,
                       struct error *err) {
    static const struct json_guard_limits limits = {.max_depth = 16, .max_items = 1u << 16};
    json_t *root = NULL, *q = NULL;
    int r = json_guard_parse(&root, config, n, &limits, "config.json", err);
    if (!r && quantization)
        r = json_guard_parse(&q, quantization, strlen(quantization), &limits, "quantization_config",
                             err);
    if (!r && (!json_is_object(root) || (q && !json_is_object(q))))
        r = error_set(err, -EINVAL, "config.json: is not a JSON object");
    if (!r && quantization && json_object_set(root, "quantization_config", q) < 0)
        r = error_set(err, -ENOMEM, "config.json: out of memory");
    if (!r && !quantization) json_object_del(root, "quantization_config");
    json_decref(q);
    if (r < 0)
        json_decref(root);
    else
        *ret = root;
    return r;
}

int checkpoint_writer_add_config(struct checkpoint_writer *w, const char *config, size_t n,
                                 const char *quantization, struct error *err) {
    json_t *root;
    int r = edit_config(&root, config, n, quantization, err);
    if (r < 0) return r;
    char *text = json_dumps(root, JSON_INDENT(2));
    r = text ? checkpoint_writer_add_file(w, "config.json", text, strlen(text), err)
             : no_memory(w, err);
    free(text);
    json_decref(root);
    return r;
}

struct copy {
    const struct checkpoint_writer *w;
    bool has_config;
};

static int copy_file(void *arg, const char *name, struct error *err) {
    struct copy *copy = arg;
    if (!is_file_name(name)) return 0; /* a temporary of a killed run */
    copy->has_config |= !strcmp(name, "config.json");
    char *from = join(copy->w->partial, "files", name), *to = join(copy->w->partial, "done", name);
    struct map map = {0};
    int r = from && to ? map_open(&map, from, err) : no_memory(copy->w, err);
    if (!r) r = atomic_file_save(to, map.bytes, map.size, err);
    map_close(&map);
    free(from);
    free(to);
    return r;
}

static int assemble(const struct checkpoint_writer *w, struct error *err) {
    char *tensors = join(w->partial, "tensors", NULL), *files = join(w->partial, "files", NULL);
    char *done = join(w->partial, "done", NULL);
    struct copy copy = {w, false};
    int r = tensors && files && done ? 0 : no_memory(w, err);
    if (!r) r = remove_part(w, "done", err);
    if (!r) r = make_part(w, "done", err);
    if (!r) r = each_entry(files, copy_file, &copy, err);
    if (!r && !copy.has_config)
        r = error_set(err, -EINVAL, "%s: config.json was not added", w->dir);
    if (!r) r = checkpoint_assemble(tensors, done, w->shard_bytes, err);
    if (!r) r = atomic_file_sync_directory(done, err);
    free(tensors);
    free(files);
    free(done);
    return r;
}

/* Moves what DIR is out of the way: a checkpoint to old/, anything else to DIR.old. */
static int clear_target(const struct checkpoint_writer *w, struct error *err) {
    struct stat st;
    if (lstat(w->dir, &st) < 0) return errno == ENOENT ? 0 : failed(w->dir, "open", err);
    if (S_ISDIR(st.st_mode) && rmdir(w->dir) == 0) return 0;
    bool ours = is_checkpoint(w->dir);
    if (!ours && !w->force) return not_empty(w->dir, "", err);
    int r = ours ? remove_part(w, "old", err) : 0;
    if (r < 0) return r;
    size_t n = strlen(w->partial) + 8;
    char *aside = malloc(n);
    if (!aside) return no_memory(w, err);
    snprintf(aside, n, ours ? "%s/old" : "%s.old", ours ? w->partial : w->dir);
    if (access(aside, F_OK) == 0)
        r = error_set(err, -EEXIST, "%s: exists; it would hold what is in %s", aside, w->dir);
    else if (rename(w->dir, aside) < 0)
        r = failed(w->dir, "move aside", err);
    free(aside);
    return r;
}

/* The checkpoint is in place: what cannot be removed is only clutter. */
static void remove_partial(const struct checkpoint_writer *w) {
    static const char *const parts[] = {"tensors", "files", "old"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) (void)remove_part(w, parts[i], NULL);
    (void)remove_entry(w->partial, "settings.json", NULL);
    (void)rmdir(w->partial);
}

int checkpoint_writer_finish(struct checkpoint_writer *w, struct error *err) {
    int r = assemble(w, err);
    if (!r) r = clear_target(w, err);
    if (r < 0) return r;
    char *done = join(w->partial, "done", NULL);
    if (!done) return no_memory(w, err);
    if (rename(done, w->dir) < 0) r = failed(w->dir, "rename into place", err);
    free(done);
    if (r < 0) return r;
    const char *slash = strrchr(w->dir, '/');
    char *parent =
        !slash ? strdup(".") : strndup(w->dir, slash > w->dir ? (size_t)(slash - w->dir) : 1);
    r = parent ? atomic_file_sync_directory(parent, err) : no_memory(w, err);
    free(parent);
    if (!r) remove_partial(w);
    return r;
}
