/* tokenizers.h - the tokenizers of tests/fixtures.
 *
 * Owns      nothing: texts are the caller's to free, tokenizers for tokenizer_free().
 * Borrows   its arguments during the call.
 * Thread    any.
 * Fails     by failing the test that asked.
 * Cost      reading and parsing the file. */
#ifndef TESTS_SUPPORT_TOKENIZERS_H
#define TESTS_SUPPORT_TOKENIZERS_H

#include <stddef.h>

struct tokenizer;

struct tokenizer *tokenizers_parse(const char *json, size_t n);

/* The tokenizer.json of a folder of fixtures/tokenizers, and what it describes. */
char *tokenizers_read(const char *name, size_t *ret_n);
struct tokenizer *tokenizers_load(const char *name);

#endif
