/* openai_prompt.h - reads the fields that say what to continue: prompts, messages, inputs.
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

#include "server/api/openai_fields.h"

openai_reader openai_prompt_parse;        /* prompts in all forms */
openai_reader openai_prompt_text;         /* one string, which may be empty */
openai_reader openai_prompt_tokens;       /* one list of ids, which may be empty */
openai_reader openai_prompt_messages;     /* a chat */
openai_reader openai_prompt_items;        /* the input of /v1/responses, as a chat */
openai_reader openai_prompt_instructions; /* a system message for openai_prompt_prepend() */

/* Puts the instructions before the messages. */
int openai_prompt_prepend(struct openai_request *r, struct api_error *err);

#endif
