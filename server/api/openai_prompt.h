/* openai_prompt.h - reads the two fields that say what to continue: "prompt" and "messages".
 *
 * Owns      nothing; what it reads belongs to the request, also after a failure.
 * Borrows   the JSON values during the call.
 * Thread    any; pure.
 * Fails     with an api_error whose param is the element's path.
 * Cost      O(values).
 *
 * A prompt is a string, a list of strings, a list of token ids, or a list of such lists. */
#ifndef SERVER_API_OPENAI_PROMPT_H
#define SERVER_API_OPENAI_PROMPT_H

#include <jansson.h>

struct api_error;
struct openai_limits;
struct openai_request;

int openai_prompt_parse(struct openai_request *r, const json_t *value,
                        const struct openai_limits *limits, struct api_error *err);

int openai_prompt_messages(struct openai_request *r, const json_t *value, struct api_error *err);

#endif
