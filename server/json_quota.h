/* json_quota.h - parses JSON within a bound of memory, and survives the bound.
 *
 * Owns      for each thread: the memory of one document, from load to release.
 * Borrows   the body during the load.
 * Thread    json_quota_install() before others start; the rest any, a document each.
 * Fails     -E2BIG over the bound, -ENOMEM, -EBADMSG for a text that is no JSON; where is filled
 *           in the last case alone.
 * Cost      that of jansson; memory is taken in pieces of 64 KiB and given back at once.
 *
 * prescan.h bounds the number of values before parsing; this bounds what they come to, whatever
 * jansson makes of them. jansson 2.14 must not see an allocation fail: when the buffer of a
 * string cannot grow, it goes on without the rest and looks for the closing quotation mark
 * beyond the buffer. So the load is left by a jump instead, over frames of jansson alone, which
 * hold nothing but this memory. */
#ifndef SERVER_JSON_QUOTA_H
#define SERVER_JSON_QUOTA_H

#include <jansson.h>
#include <stddef.h>

/* jansson allocates here from now on; memory from before may be freed as ever. */
void json_quota_install(void);

/* The document is alive until json_quota_release(), which must follow in any case; nothing else
 * of jansson's may be made or kept on this thread in between. Without json_quota_install()
 * nothing is bounded, and the document is released by its last reference. */
int json_quota_load(json_t **ret, const char *body, size_t n, size_t flags, size_t most,
                    json_error_t *where);

void json_quota_release(json_t *root); /* NULL is allowed */

#endif
