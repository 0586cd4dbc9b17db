/* sha256.h - computes SHA-256 digests (FIPS 180-4).
 *
 * Owns      nothing; the state lives with the caller.
 * Borrows   bytes during the call.
 * Thread    any.
 * Fails     never.
 * Cost      about 5 ns a byte. */
#ifndef ENGINE_SHA256_H
#define ENGINE_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
    uint32_t h[8];
    uint8_t block[64];
    size_t n_block;   /* bytes waiting in block */
    uint64_t n_total; /* bytes taken so far */
};

enum { SHA256_HEX = 65 /* characters of a digest with its NUL */ };

void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *bytes, size_t n);
void sha256_end(struct sha256 *s, char hex[SHA256_HEX]);

#endif
