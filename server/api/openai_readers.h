/* openai_readers.h - reads the values of fields: the functions that rows of the field table name.
 *
 * Owns      nothing; what is read belongs to the request, also after a failure.
 * Borrows   its arguments during the call.
 * Thread    any; pure.
 * Fails     with an api_error whose param is the field's path.
 * Cost      O(value).
 *
 * The first three store at the row's offset; their range is the row's. */
#ifndef SERVER_API_OPENAI_READERS_H
#define SERVER_API_OPENAI_READERS_H

#include <stdbool.h>

#include "server/api/openai_fields.h"

openai_reader openai_read_real, openai_read_int, openai_read_bool;
openai_reader openai_read_not;     /* stores the opposite of a bool */
openai_reader openai_read_refused; /* takes the neutral values alone */

openai_reader openai_read_max_tokens, openai_read_top_k, openai_read_seed, openai_read_model,
    openai_read_stop, openai_read_stop_ids, openai_read_bias, openai_read_stream_options,
    openai_read_truncate, openai_read_truncation, openai_read_salt, openai_read_id,
    openai_read_encoding, openai_read_pooling, openai_read_dimensions;

/* A field without effect, for the header; names of several places once. */
void openai_note_ignored(struct openai_request *r, const char *name);

/* What JSON calls an integer may be written 16.0, and clients whose numbers are all floating
 * write it so. */
bool openai_whole(const json_t *value, json_int_t *ret);

#endif
