/* sequence_prompt.h - makes a sequence's prompt tokens from its request.
 *
 * Owns      nothing; tokens and echoed text are the sequence's.
 * Borrows   the sequence during the call.
 * Thread    engine.
 * Fails     -EINVAL, -E2BIG (longer than the context), -ENOMEM.
 * Cost      that of tokenizing the text.
 *
 * The request's own form of the prompt is freed once it has been tokenized, so that a long queue
 * holds each prompt once. */
#ifndef ENGINE_SEQUENCE_PROMPT_H
#define ENGINE_SEQUENCE_PROMPT_H

struct error;
struct sequence;

int sequence_prompt_make(struct sequence *s, struct error *err);

#endif
