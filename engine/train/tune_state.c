#include "engine/train/tune_state.h"

#include <stdint.h>
#include <string.h>

#include "engine/atomic_file.h"
#include "engine/map.h"
#include "engine/train/student.h"
#include "kernels/error.h"

static const char magic[8] = "GPTQTTN1";

struct head {
    char magic[8];
    char settings[SHA256_HEX];
    struct tune_progress progress;
};

struct saving {
    struct atomic_file file;
    struct sha256 sum;
};

static int save_bytes(void *arg, void *bytes, size_t n, struct error *err) {
    struct saving *s = arg;
    sha256_add(&s->sum, bytes, n);
    return atomic_file_write(&s->file, bytes, n, err);
}

int tune_state_save(const char *path, const char *settings_hash, const struct tune_progress *p,
                    struct student *s, struct error *err) {
    struct saving saving;
    struct head head;
    char hex[SHA256_HEX];
    memset(&head, 0, sizeof head); /* padding, too, is part of the sum */
    memcpy(head.magic, magic, sizeof magic);
    memcpy(head.settings, settings_hash, sizeof head.settings);
    head.progress = *p;
    int r = atomic_file_open(&saving.file, path, err);
    if (r < 0) return r;
    sha256_init(&saving.sum);
    r = save_bytes(&saving, &head, sizeof head, err);
    if (r == 0) r = student_visit(s, save_bytes, &saving, err);
    if (r == 0) {
        sha256_end(&saving.sum, hex);
        r = atomic_file_write(&saving.file, hex, sizeof hex, err);
    }
    if (r == 0) r = atomic_file_commit(&saving.file, err);
    atomic_file_close(&saving.file);
    return r;
}

struct loading {
    const uint8_t *at;
    size_t left;
};

static int count_bytes(void *arg, void *bytes, size_t n, struct error *err) {
    (void)bytes;
    (void)err;
    *(size_t *)arg += n;
    return 0;
}

static int load_bytes(void *arg, void *bytes, size_t n, struct error *err) {
    struct loading *l = arg;
    (void)err;
    memcpy(bytes, l->at, n);
    l->at += n;
    return 0;
}

static bool is_whole(const struct map *map, size_t body, const char *settings_hash) {
    struct sha256 sum;
    char hex[SHA256_HEX];
    const struct head *head = (const void *)map->bytes;
    if (map->size != sizeof *head + body + sizeof hex) return false;
    if (memcmp(head->magic, magic, sizeof magic) != 0) return false;
    if (memcmp(head->settings, settings_hash, sizeof head->settings) != 0) return false;
    sha256_init(&sum);
    sha256_add(&sum, map->bytes, map->size - sizeof hex);
    sha256_end(&sum, hex);
    return memcmp((const char *)map->bytes + map->size - sizeof hex, hex, sizeof hex) == 0;
}

bool tune_state_load(const char *path, const char *settings_hash, struct tune_progress *p,
                     struct student *s) {
    struct map map;
    size_t body = 0;
    student_visit(s, count_bytes, &body, NULL);
    if (map_open(&map, path, NULL) < 0) return false;
    bool whole = is_whole(&map, body, settings_hash);
    if (whole) {
        struct loading l = {(const uint8_t *)map.bytes + sizeof(struct head), body};
        memcpy(p, &((const struct head *)(const void *)map.bytes)->progress, sizeof *p);
        student_visit(s, load_bytes, &l, NULL);
    }
    map_close(&map);
    return whole;
}
