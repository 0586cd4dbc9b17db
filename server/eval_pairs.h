/* eval_pairs.h - scores continuations that a file lists, one JSON object a line.
 *
 * Owns      nothing beyond the call.
 * Borrows   the model and the path during the call.
 * Thread    the model's.
 * Fails     with the line's number and the field: no JSON, a wrong type, more tokens than fit.
 * Cost      one forward pass over each line's tokens.
 *
 * A line is {"context", "continuation"}, each a string or a list of token ids, and gives a line
 * {"loglikelihood", "greedy", "tokens"}. Strings are cut as evaluation harnesses do: spaces at
 * the context's end belong to the continuation, and both are tokenized as one text. */
#ifndef SERVER_EVAL_PAIRS_H
#define SERVER_EVAL_PAIRS_H

struct error;
struct offline;

int eval_pairs_run(struct offline *o, const char *path, struct error *err);

#endif
