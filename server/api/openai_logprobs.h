/* openai_logprobs.h - collects log probabilities of tokens into OpenAI's JSON.
 *
 * Owns      the lists collected so far; openai_logprobs_deinit() frees them.
 * Borrows   its arguments during the call.
 * Thread    any, one at a time; pure.
 * Fails     only as struct text does.
 * Cost      O(bytes written).
 *
 * Completions have four parallel lists, chats one list of objects. A token that is not UTF-8
 * by itself is shown as "bytes:\xNN..." in completions; a chat's "bytes" give it exactly. */
#ifndef SERVER_API_OPENAI_LOGPROBS_H
#define SERVER_API_OPENAI_LOGPROBS_H

#include <stddef.h>
#include <stdint.h>

#include "server/api/openai_parse.h"
#include "server/text.h"

struct engine_token;

/* Raw bytes of a token, NULL when unknown; as engine_token_text(). */
typedef const char *openai_logprobs_piece(const void *arg, int32_t id, size_t *ret_n);

struct openai_logprobs { /* zeroed = empty */
    int n;
    size_t offset; /* characters before the next token */
    struct text tokens, values, tops, offsets;
};

void openai_logprobs_deinit(struct openai_logprobs *l);

/* A token without a probability (NaN: a prompt's first) has null in a completion's lists; a
 * completion always shows the token's own probability among the best, too. */
void openai_logprobs_add(struct openai_logprobs *l, enum openai_kind kind,
                         const struct engine_token *token, openai_logprobs_piece *piece,
                         const void *arg);

/* One element of vLLM's "prompt_logprobs": null, or an object with the token itself and the best
 * n_top by their ids. */
void openai_logprobs_prompt(struct text *out, const struct engine_token *token, int n_top,
                            openai_logprobs_piece *piece, const void *arg);

/* Adds the JSON object to out; l is empty then, and keeps its offset. */
void openai_logprobs_flush(struct openai_logprobs *l, enum openai_kind kind, struct text *out);

#endif
