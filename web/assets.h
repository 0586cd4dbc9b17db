/* assets.h - the files of the browser page, as they are embedded in the program.
 *
 * Owns      constant bytes.
 * Borrows   nothing.
 * Thread    any.
 * Fails     never; a path that is not there gives NULL.
 * Cost      O(files).
 *
 * embed.py writes the implementation from the files beside it when the program is built. */
#ifndef WEB_ASSETS_H
#define WEB_ASSETS_H

#include <stddef.h>

struct asset {
    const char *path; /* "/app.js" */
    const char *type; /* for Content-Type */
    const char *tag;  /* for ETag: equal bytes have equal tags */
    const unsigned char *bytes;
    size_t size;
};

const struct asset *assets_find(const char *path);

#endif
