/* tiny_source.h - a model for the fake model: configuration and tokenizer, no weights to speak of.
 *
 * Owns      its files, static memory that is made anew by each call.
 * Borrows   nothing.
 * Thread    one.
 * Fails     fails the running test.
 * Cost      a few KB.
 *
 * Token b < 256 is byte b, 256 is <|im_end|> (special, ends a generation), 257 <|im_start|> (special).
 * The chat template is ChatML. */
#ifndef TESTS_SUPPORT_TINY_SOURCE_H
#define TESTS_SUPPORT_TINY_SOURCE_H

#include <stdbool.h>

struct source;

struct source *tiny_source_open(int context, bool with_tokenizer);

/* Its tokenizer.json, NUL-terminated, for models of 258 tokens and more. */
const char *tiny_source_tokenizer(void);

#endif
