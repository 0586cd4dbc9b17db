/* map.h - gives a file's bytes as read-only memory.
 *
 * Owns      the mapping, until map_close(); nothing after map_wrap().
 * Borrows   the memory given to map_wrap(), until the map is dropped.
 * Thread    any; a map does not change once made.
 * Fails     map_open() with the errno of open, stat or mmap; the rest never.
 * Cost      open O(1): pages are read when touched.
 *
 * The bytes stay at one address for the life of the map. A file that somebody shortens while it
 * is mapped raises SIGBUS on access, as with every mapping: replace model files by rename. */
#ifndef ENGINE_MAP_H
#define ENGINE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

struct map {
    const uint8_t *bytes; /* never NULL, also for an empty file */
    size_t size;
    bool is_mapped;
};

/* Regular files only. */
int map_open(struct map *ret, const char *path, struct error *err);

void map_wrap(struct map *ret, const void *bytes, size_t size);

/* Lets the system drop the whole pages in [offset, offset + n): they are read again when
 * touched. Nothing happens to wrapped memory. */
void map_release(const struct map *map, size_t offset, size_t n);

/* Leaves an empty map; a zeroed one is allowed. */
void map_close(struct map *map);

#endif
