/* fake_engine.h - an engine without a model, which says what its prompt asks for.
 *
 * Owns      as engine/engine.h.
 * Borrows   as engine/engine.h.
 * Thread    as engine/engine.h; it has a thread of its own, like the real one.
 * Fails     as the prompt says.
 * Cost      next to nothing.
 *
 * Linked instead of the real engine, it implements engine/engine.h, source_close() and
 * model_source_open(). A token is a byte: the vocabulary is 256. The prompt's first word:
 *
 *   (anything else)  the prompt comes back, byte by byte, then the end token
 *   @hold            starts, and gives nothing until it is cancelled
 *   @queue           does not even start
 *   @wait            starts, and comes back once the engine drains
 *   @gate            gives a token of "abcdefgh..." for each permit
 *   @open N          gives N permits to the gates
 *   @flood           gives 16 KiB of text in each step, without an end
 *   @seed, @params   tells the seed, or the sampling parameters
 *   @claim           tells the priority, whether it has a salt, and other options
 *   @tenant, @limits tells the tenant, weight and salt, or which deadlines there are
 *   @busy N R S      from now on N prompt tokens wait, R are computed in a second, steps take S
 *   @expire          fails with -ETIMEDOUT
 *   @best            tells the seed, and is likeliest where that is 3 modulo 4
 *   @cached          half of its tokens were found computed
 *   @full, @long     submission fails with -EAGAIN, -E2BIG
 *   @bad             submission fails with -EINVAL, and names the prompt
 *   @late, @fail     fails with -E2BIG before it starts, with -EIO after its first token *
 * A model called "load:FIFO" loads until a line is written into that FIFO: "ready", or the reason
 * why it cannot be loaded. */
#ifndef TESTS_SUPPORT_FAKE_ENGINE_H
#define TESTS_SUPPORT_FAKE_ENGINE_H

enum { FAKE_ENGINE_CONTEXT = 1 << 20, FAKE_ENGINE_VOCAB = 256, FAKE_ENGINE_HIDDEN = 4 };

#endif
