/* openapi.h - writes the document of the API, /openapi.json, from the tables that it runs on.
 *
 * Owns      nothing; the schemas of answers are constant.
 * Borrows   its arguments during the call.
 * Thread    any; pure.
 * Fails     only as struct text does.
 * Cost      O(the document), some 60 KB.
 *
 * Paths come from the router's rows, schemas of requests from the table of fields, statuses from
 * the table of errors. Only the schemas of answers are written by hand; a test holds real answers
 * against them. */
#ifndef SERVER_API_OPENAPI_H
#define SERVER_API_OPENAPI_H

#include <stdbool.h>
#include <stddef.h>

struct openai_field;
struct text;

struct openapi_facts { /* of this server */
    int vocab;         /* ids are below; 0 = not known */
    int hidden;        /* elements of an embedding */
    bool strict;       /* unknown fields are refused */
    bool keys;         /* requests need an API key */
};

void openapi_render(struct text *out, const struct openapi_facts *facts);

/* The schema of a field's values, with its description. */
void openapi_field(struct text *out, const struct openai_field *f,
                   const struct openapi_facts *facts);

/* The hand-written ones: name and schema, ' for ". */
struct openapi_answer {
    const char *name, *schema;
};

const struct openapi_answer *openapi_answers(size_t *ret_n);

#endif
