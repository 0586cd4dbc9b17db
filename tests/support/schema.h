/* schema.h - holds JSON values against JSON schemas, as far as our document uses them.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any.
 * Fails     a keyword it does not know fails the check, so that none is skipped unseen.
 * Cost      O(value).
 *
 * Known: type, const, enum, required, properties, additionalProperties, items, anyOf, oneOf, $ref
 * into the document, minimum, maximum, minItems, maxItems, minLength; pattern, description and
 * the like say nothing here. */
#ifndef TESTS_SUPPORT_SCHEMA_H
#define TESTS_SUPPORT_SCHEMA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* Whether the value is what the schema wants; where gets the path of what is not. */
bool schema_check(const json_t *document, const json_t *schema, const json_t *value, char *where,
                  size_t size);

/* What "#/a/b" means in the document; NULL: nothing. */
const json_t *schema_resolve(const json_t *document, const char *reference);

#endif
