/* jsonl.h - reads fixture files, whole or a JSON value a line.
 *
 * Owns      the opened file's text; a value it gives is the caller's, for json_decref().
 * Borrows   paths during calls.
 * Thread    one.
 * Fails     by failing the test that asked.
 * Cost      the file's size in memory.
 *
 * Paths are relative to tests/fixtures (GPTQT_FIXTURES) or, with jsonl_shared(), to the folder
 * of large fixtures that GPTQT_SHARED names; without that folder the test is skipped. */
#ifndef TESTS_SUPPORT_JSONL_H
#define TESTS_SUPPORT_JSONL_H

#include <jansson.h>
#include <stddef.h>

struct jsonl {
    char *text;
    size_t n, at;
    int line; /* of the last value, from 1 */
};

/* The bytes of a fixture, malloc'ed, with a NUL after them. */
char *jsonl_read(const char *path, size_t *ret_n);
char *jsonl_read_shared(const char *path, size_t *ret_n);

void jsonl_open(struct jsonl *j, const char *path);
void jsonl_open_shared(struct jsonl *j, const char *path);
json_t *jsonl_next(struct jsonl *j); /* NULL at the end */
void jsonl_close(struct jsonl *j);

#endif
