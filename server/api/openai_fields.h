/* openai_fields.h - the table of all fields that requests may have.
 *
 * Owns      the table, which is constant.
 * Borrows   the JSON value and the limits during a read.
 * Thread    any; pure.
 * Fails     reading: with an api_error whose param is the field's path.
 * Cost      O(rows) to find one; O(value) to read it.
 *
 * One row is one field of some endpoints: how it is read, what /openapi.json and the README say
 * about it, and a value for the test that tries every row on a running server. A field that may
 * stand in two endpoints with two meanings has two rows. In the rows' JSON, ' stands for ". */
#ifndef SERVER_API_OPENAI_FIELDS_H
#define SERVER_API_OPENAI_FIELDS_H

#include <jansson.h>
#include <stddef.h>

#include "server/api/openai_parse.h"

struct api_error;
struct openai_field;
struct text;

enum openai_status {
    OPENAI_SUPPORTED,
    OPENAI_REFUSED, /* its loss would change the answer's meaning: 400, but for neutral values */
    OPENAI_IGNORED  /* it has no effect on the answer: taken, and named in x-ignored-params */
};

typedef int openai_reader(struct openai_request *r, const struct openai_field *f,
                          const json_t *value, const struct openai_limits *limits,
                          struct api_error *err);

struct openai_field {
    const char *name;
    unsigned where; /* bits 1 << enum openai_kind */
    enum openai_status status;
    openai_reader *read; /* NULL: ignored */
    size_t offset;       /* in struct openai_request */
    double min, max;
    const char *schema;  /* the inside of a JSON schema, @ is the largest token id; of a refused
                            field: the list of its neutral values; NULL = by reader and range */
    const char *example; /* a value that gives 200, of a refused field 400 */
    const char *doc;     /* a line of the README */
};

/* Rows in the order of the README. */
const struct openai_field *openai_fields(size_t *ret_n);

/* The row of a name in the requests of this kind, or NULL. */
const struct openai_field *openai_field_find(const char *name, enum openai_kind kind);

/* "completions, chat", the endpoints of a row; and of one kind. */
void openai_field_where(struct text *out, const struct openai_field *f);
const char *openai_kind_name(enum openai_kind kind);

/* Adds a row's JSON with ' made ". */
void openai_field_json(struct text *out, const char *json);

#endif
