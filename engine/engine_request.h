/* engine_request.h - vets a request before it is queued.
 *
 * Owns      nothing.
 * Borrows   request and shape during the call.
 * Thread    any.
 * Fails     -EINVAL naming the field, -E2BIG for a prompt that cannot fit.
 * Cost      O(prompt), no tokenizing.
 *
 * What passes can still prove too long once it is tokenized, and nothing else. */
#ifndef ENGINE_ENGINE_REQUEST_H
#define ENGINE_ENGINE_REQUEST_H

#include <stddef.h>

struct engine_request;
struct error;
struct sequence_shape;

/* max_text: bytes that certainly hold more tokens than the context. */
int engine_request_check(const struct engine_request *request, const struct sequence_shape *shape,
                         size_t max_text, struct error *err);

/* Tokens that the prompt may have: all positions save one for an answer where one is wanted. To be
 * tokenized it need not fit. */
size_t engine_request_room(const struct engine_request *request, int context);

/* Of n prompt tokens the last that many count. */
size_t engine_request_kept(const struct engine_request *request, int context, size_t n);

/* Frees the prompt. */
void engine_request_drop_prompt(struct engine_request *request);

#endif
