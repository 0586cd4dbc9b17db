/* engine_prompt.h - what a step says about prompts: log probabilities, pooled hidden states.
 *
 * Owns      nothing; results gather in the sequence.
 * Borrows   engine, sequence and share during calls.
 * Thread    engine.
 * Fails     when the model does. Without memory that sequence fails alone.
 * Cost      scores: the output matrix and a pass over the vocabulary per prompt token.
 *
 * A prompt may come in chunks, and a second time after a preemption: each position counts once,
 * in order, so results do not depend on how it was cut, to the last bit. */
#ifndef ENGINE_ENGINE_PROMPT_H
#define ENGINE_ENGINE_PROMPT_H

struct engine;
struct error;
struct scheduler_share;
struct sequence;

/* After the forward pass; first: where the share's tokens begin in the batch. Posts ENGINE_PROMPT
 * once the prompt is complete. */
int engine_prompt_read(struct engine *e, struct sequence *seq, const struct scheduler_share *share,
                       int first, struct error *err);

/* The pooled vector of a complete prompt goes into the final event; -ENOMEM. */
int engine_prompt_pool(struct engine *e, struct sequence *seq);

#endif
