/* engine_null.h - what a null engine says instead of a model, and when.
 *
 * Owns      nothing; struct engine_null lives in the engine.
 * Borrows   texts and results during calls.
 * Thread    engine.
 * Fails     -EINVAL for a token that does not exist.
 * Cost      choosing the token: a pass over the vocabulary. Else none.
 *
 * Everything around the model stays real: queue, steps, blocks, text, stop strings. A prompt of
 * any length is read, and its first token given, at once; then each sequence has a timetable of
 * its own. So what a client waits longer is the server's doing, and not that of a tick which all
 * share. Timetables begin at whole milliseconds: a step serves all that are due together. */
#ifndef ENGINE_ENGINE_NULL_H
#define ENGINE_ENGINE_NULL_H

#include <stdint.h>

#include "engine/engine_texts.h"
#include "engine/sampler.h"

struct engine_options;

enum { ENGINE_NULL_STEP_TOKENS = 1 << 24, ENGINE_NULL_KV_TOKENS = 1 << 24 };

struct engine_null {
    int32_t token;
    int64_t interval_ns; /* of a sequence's tokens; 0 = none */
    int64_t next_ns;     /* CLOCK_MONOTONIC of the next step: 0 = at once */
};

/* options->null_token, or a token that is a visible word or the beginning of one. */
int engine_null_init(struct engine_null *ret, const struct engine_options *options,
                     const struct engine_texts *texts, int vocab, struct error *err);

/* Certain of its token: log probability 0, and the floor of sampler.h for all others. n_top as in
 * struct sampler_call. */
void engine_null_result(const struct engine_null *n, int32_t id, int n_top,
                        struct sampler_result *ret);

/* When a sequence that was due at due_ns (0: this is its first token) gets its next token. */
int64_t engine_null_due(const struct engine_null *n, int64_t due_ns, int64_t now_ns);

#endif
