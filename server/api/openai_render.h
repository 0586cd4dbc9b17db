/* openai_render.h - writes answers and stream chunks in the bytes that OpenAI's clients expect.
 *
 * Owns      nothing; everything goes to the caller's text.
 * Borrows   its arguments during the call.
 * Thread    any; pure: the same input gives the same bytes.
 * Fails     only as struct text does.
 * Cost      O(bytes written), no JSON tree.
 *
 * What is equal in all chunks of a stream is rendered once, as its head; a token then costs
 * two copies and the escaping of its own text. */
#ifndef SERVER_API_OPENAI_RENDER_H
#define SERVER_API_OPENAI_RENDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "server/api/openai_parse.h"

struct text;

struct openai_render { /* what the chunks of one answer share */
    enum openai_kind kind;
    const char *id, *model, *fingerprint;
    int64_t created;        /* seconds since 1970 */
    bool stream, usage_key; /* chunks carry "usage":null */
};

struct openai_usage {
    int n_prompt, n_generated, n_cached; /* cached: of the prompt */
};

struct openai_delta { /* one chunk or one whole choice */
    int index;
    const char *text;
    size_t text_len;
    const char *logprobs; /* JSON, logprobs_len bytes; NULL = none */
    size_t logprobs_len;
    const char *finish;               /* NULL while it goes on */
    const char *extra;                /* more members of the choice, ",\"a\":1"; NULL = none */
    const char *top;                  /* more members of the whole object, likewise */
    const struct openai_usage *usage; /* so far; NULL = not in this chunk */
};

/* The object up to its first choice: {"id":...,"choices":[ */
void openai_render_head(struct text *out, const struct openai_render *render);

/* One event "data: {...}" with one choice; head comes from openai_render_head(). */
void openai_render_chunk(struct text *out, const struct openai_render *render,
                         const struct text *head, const struct openai_delta *delta);

/* The first chunk of a chat choice: the role, and what delta has of extra and top. */
void openai_render_role(struct text *out, const struct openai_render *render,
                        const struct text *head, const struct openai_delta *delta);

/* The chunk before [DONE] when include_usage was asked for. */
void openai_render_usage_chunk(struct text *out, const struct text *head,
                               const struct openai_usage *usage);

/* One element of "choices" in an answer that is not streamed. */
void openai_render_choice(struct text *out, const struct openai_render *render,
                          const struct openai_delta *delta);

/* The object after its last choice; top as in struct openai_delta. */
void openai_render_tail(struct text *out, const char *top, const struct openai_usage *usage);

/* The usage object itself. */
void openai_render_usage(struct text *out, const struct openai_usage *usage);

#endif
