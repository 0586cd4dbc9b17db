/* fake_model.h - stands in for engine/model.h and the back end in tests of the engine.
 *
 * Owns      one process-wide set of controls: each Criterion test is a process of its own.
 * Borrows   nothing.
 * Thread    controls: the test's; the model: the engine's. They meet under one lock.
 * Fails     where a control says so.
 * Cost      O(tokens of the sequence) for a row of logits.
 *
 * Keys and values are the token ids themselves, kept in the blocks that the batch names. Logits
 * are a function of the ids found through the sequence's block table, so a block that was lost,
 * shared or not computed again changes the result. */
#ifndef TESTS_SUPPORT_FAKE_MODEL_H
#define TESTS_SUPPORT_FAKE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FAKE_MODEL_EOS = 256, FAKE_MODEL_VOCAB = 258 };

enum fake_model_kind {
    FAKE_MODEL_HASH,     /* logits: a hash of all tokens so far; end tokens are unlikely */
    FAKE_MODEL_ALPHABET, /* after byte b comes b + 1; after 'z' the end token */
    FAKE_MODEL_LOOP      /* likes to repeat itself, among a..h */
};

void fake_model_set_kind(enum fake_model_kind kind);

/* Whether it gives whole rows of logits only, and how often some columns of one were asked for. */
void fake_model_set_whole(bool whole);
int fake_model_columns(void);

/* From now on each forward() waits for a permit. */
void fake_model_hold(void);
void fake_model_allow(int n);  /* n more permits */
void fake_model_release(void); /* no permits needed any more */

/* Waits until forward() has been entered n times since the start; the last may be waiting. */
void fake_model_wait_entered(int n);
int fake_model_entered(void);

/* model_logits() fails with -EIO from now on. */
void fake_model_break(void);

/* From now on model_open() reports progress again and again instead of ending. */
void fake_model_hold_load(void);
void fake_model_release_load(void);
/* model_open() fails with -EBADMSG from now on. */
void fake_model_break_load(void);

/* From now on back ends are devices with that much memory; 0: it is the host's. */
void fake_model_set_device(size_t total, size_t free_bytes);

/* Largest number of tokens and sequences in one forward(). */
int fake_model_max_tokens(void);
int fake_model_max_seqs(void);

/* Nothing opened is left open. */
bool fake_model_all_closed(void);

/* The token that greedy decoding picks after ids, by itself. */
int32_t fake_model_expect(const int32_t *ids, int n);
/* The hidden state of the last of ids. */
void fake_model_expect_hidden(const int32_t *ids, int n, float *hidden, int width);

#endif
