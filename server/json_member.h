/* json_member.h - looks whether a JSON object has a member, before it is parsed.
 *
 * Owns      nothing.
 * Borrows   the text during the call.
 * Thread    any; pure.
 * Fails     never: a text that is no object has no members.
 * Cost      one pass, no allocation.
 *
 * Only names without escapes are found, and the text need not be whole: what it decides is how
 * it is parsed, and the parser judges it. */
#ifndef SERVER_JSON_MEMBER_H
#define SERVER_JSON_MEMBER_H

#include <stdbool.h>
#include <stddef.h>

bool json_member(const char *text, size_t n, const char *name);

#endif
