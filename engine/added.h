/* added.h - finds the tokens of a text that are matched as a whole, such as <|im_end|>.
 *
 * Owns      copies of the tokens' texts, until added_free().
 * Borrows   the searched text during the call.
 * Thread    any, once initialised.
 * Fails     added_init(): -ENOMEM.
 * Cost      a search looks at each byte once, and at a token's length where one may begin.
 *
 * Matches are leftmost, then longest. One that is passed over (a special token where those are
 * plain text, part of a longer word where whole words are asked for) still uses up its text, as
 * in the reference implementation. */
#ifndef ENGINE_ADDED_H
#define ENGINE_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct pattern;
struct pattern_work;

struct added_token {
    const char *text;
    size_t n;
    int32_t id;
    bool special;
    bool lstrip, rstrip; /* takes the white space before, after it along */
    bool single_word;    /* only where no letter, digit or underscore adjoins */
    bool normalized;     /* looked for in the normalized text */
};

struct added {
    struct added_token *tokens; /* in the order of their texts */
    size_t n;
    size_t first[257]; /* the tokens that begin with each byte */
    char *texts;
    struct pattern *word; /* one word character; NULL unless a token is single_word */
};

/* Where a search stands; zero it to begin. */
struct added_scan {
    size_t gap;  /* end of the last match */
    size_t from; /* where to look on */
};

struct added_match {
    size_t start, end;
    int32_t id;
};

/* Copies the tokens; those with an empty text are dropped. */
int added_init(struct added *a, const struct added_token *tokens, size_t n, struct error *err);
void added_free(struct added *a);

/* The next match, or false. What is between the last match's end and ret->start is plain text;
 * a match may begin in white space that the one before took along. */
bool added_next(const struct added *a, struct pattern_work *work, struct added_scan *scan,
                const char *text, size_t n, bool parse_special, struct added_match *ret);

#endif
