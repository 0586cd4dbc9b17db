/* draft.h - guesses a sequence's next tokens from what it has said before.
 *
 * Owns      its tables, until draft_free().
 * Borrows   tokens during calls.
 * Thread    engine.
 * Fails     never: without memory there are fewer guesses.
 * Cost      O(new tokens) a call, 24 to 48 bytes a token.
 *
 * Prompt lookup (Saxena 2023; llama.cpp's and vLLM's "ngram"): the last tokens, 4 of them or
 * else 3 or 2, are sought in the text before, and what followed them there, at the newest place,
 * is the guess. Where the guess reaches the end of the text it goes on with itself, so that a
 * short cycle gives a long one. Whether it is right is for the model to say. */
#ifndef ENGINE_DRAFT_H
#define ENGINE_DRAFT_H

#include <stdint.h>

enum { DRAFT_SHORTEST = 2, DRAFT_LONGEST = 4, DRAFT_MAX = 32 /* guesses of one call */ };

/* A zeroed one is ready. */
struct draft {
    int32_t
        *ends; /* (lengths, size) where the last run of tokens with that hash ends, + 1; 0 = none */
    int size;  /* a power of two */
    int n_known; /* runs that end before it are in the tables */
};

/* Guesses what follows tokens (n), which only ever get more from call to call. Fills out with at
 * most `most` guesses and returns how many. */
int draft_next(struct draft *d, const int32_t *tokens, int n, int32_t *out, int most);
void draft_free(struct draft *d);

#endif
