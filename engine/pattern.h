/* pattern.h - finds the matches of a tokenizer's split pattern.
 *
 * Owns      the compiled pattern; a work area owns what one thread needs while matching.
 * Borrows   the pattern text during pattern_new(), the subject during pattern_find().
 * Thread    a pattern: any number; a work area: one at a time.
 * Fails     -ENOMEM; -ENOTSUP names the construct; -EBADMSG carries the compiler's text;
 *           -E2BIG when a match costs more steps than are sane.
 * Cost      that of PCRE2, compiled to machine code where that is available.
 *
 * tokenizer.json files are written for Oniguruma. Constructs that PCRE2 reads alike pass, those
 * that it reads differently are rewritten (\s, character classes inside classes) or refused:
 * equal ids to the reference implementation rest on this. */
#ifndef ENGINE_PATTERN_H
#define ENGINE_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

struct error;
struct pattern;
struct pattern_work;

enum { PATTERN_MAX = 4096 /* bytes; the longest in use (GPT-4o's) has 400 */ };

/* literal: the text stands for itself. */
int pattern_new(struct pattern **ret, const char *text, size_t n, bool literal, struct error *err);
void pattern_free(struct pattern *p); /* NULL is allowed */

struct pattern_work *pattern_work_new(void); /* NULL: out of memory */
void pattern_work_free(struct pattern_work *work);

/* The first match at or after `from`: 1 and the match's place, or 0. The subject must be
 * well-formed UTF-8, and `from` the beginning of a character. A match may be empty. */
int pattern_find(const struct pattern *p, struct pattern_work *work, const char *text, size_t n,
                 size_t from, size_t *ret_start, size_t *ret_end);

#endif
