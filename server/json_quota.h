/* json_quota.h - bounds the memory that jansson takes for one document.
 *
 * Owns      a count for each thread.
 * Borrows   nothing.
 * Thread    json_quota_install() before others start; the rest any.
 * Fails     inside: over the quota jansson gets no memory, and reports that.
 * Cost      a few instructions an allocation.
 *
 * prescan.h bounds the number of values before parsing; this bounds what they come to, whatever
 * jansson makes of them. Without json_quota_install() nothing is bounded. */
#ifndef SERVER_JSON_QUOTA_H
#define SERVER_JSON_QUOTA_H

#include <stdbool.h>
#include <stddef.h>

/* jansson allocates here from now on; memory from before may be freed as ever. */
void json_quota_install(void);

/* This thread may take so many bytes more, until json_quota_end(). */
void json_quota_begin(size_t bytes);

/* Whether the quota was what an allocation failed for. */
bool json_quota_end(void);

#endif
