/* rotation.h - describes the random orthogonal matrices between which a coded matrix is stored.
 *
 * Owns      struct rotation_plan's matrix until rotation_plan_free(); views point into others' bytes.
 * Borrows   a view's bytes until the view is dropped, the view while a plan is in use.
 * Thread    any; applying only reads.
 * Fails     rotation_parse() with -EBADMSG naming the field, rotation_choose() with -ENOTSUP,
 *           rotation_plan_init() with -ENOMEM.
 * Cost      applying: n (log2 n + order) operations.
 *
 * "Incoherence" (QuIP, arXiv 2307.13304; with Hadamard matrices as QuIP#, 2402.04396, section 3):
 * stored is W' = U W V^T, and W x = U^T (W' (V x)). V is (B x H) D / sqrt(2^k) with n = order * 2^k,
 * D random signs, H the Hadamard matrix of 2^k in natural order, B an orthogonal matrix of a small
 * order, x the Kronecker product: (B x H)[a 2^k + b][c 2^k + d] = B[a][c] H[b][d]. U alike. The
 * layout of a block is written down in engine/CHECKPOINT.md. */
#ifndef KERNELS_ROTATION_H
#define KERNELS_ROTATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
    ROTATION_HEADER_BYTES = 64,
    ROTATION_ALIGN = 64,      /* of the block */
    ROTATION_MAX = 1 << 16,   /* the largest n */
    ROTATION_MAX_ORDER = 256, /* of B: what it costs to apply grows with it */
    ROTATION_HADAMARD_ORDER = 64 /* up to which a Hadamard matrix is chosen for B */
};

/* What B is. All entries of the first three have one size, which spreads a weight evenly. */
enum rotation_basis {
    ROTATION_ONE = 0,    /* order 1 */
    ROTATION_PALEY1 = 1, /* Hadamard: order q + 1, q a prime of the form 4 i + 3 */
    ROTATION_PALEY2 = 2, /* Hadamard: order 2 (q + 1), q a prime of the form 4 i + 1 */
    ROTATION_COSINE = 3  /* the discrete cosine transform of the second kind, any order */
};

struct rotation {
    int n; /* 0: none */
    enum rotation_basis basis;
    int order;             /* of B; n = order * 2^k */
    const uint32_t *signs; /* (ceil(n / 32)) bit i % 32 of word i / 32 set: D_ii = -1 */
};

struct rotation_view {
    int rows, cols;
    struct rotation in, out; /* V: n = cols, always; U: n = rows or 0 */
    size_t total;            /* bytes of the block */
};

/* Fills in the basis and order that serve n best; -ENOTSUP where n has too large an odd factor. */
int rotation_choose(struct rotation *ret, int n, struct error *err);

/* Whether two have the same effect. */
bool rotation_same(const struct rotation *a, const struct rotation *b);

/* Bytes of the block; out may be NULL. */
size_t rotation_bytes(int rows, int cols, bool has_out);

int rotation_parse(struct rotation_view *ret, const void *bytes, size_t n_bytes,
                   struct error *err);

/* Writes the header into a zeroed block and points ret at the signs, which the caller then fills.
 * in, out: basis and order of each; out NULL: none. */
void rotation_format(struct rotation_view *ret, void *block, int rows, int cols,
                     const struct rotation *in, const struct rotation *out);

/* A rotation made ready to be applied. */
struct rotation_plan {
    struct rotation r;
    int length;    /* 2^k */
    double *basis; /* (order, order) B; NULL for ROTATION_ONE */
};

int rotation_plan_init(struct rotation_plan *ret, const struct rotation *r, struct error *err);
void rotation_plan_free(struct rotation_plan *p); /* zeroed is allowed */

/* x = V x or, back, V^T x. tmp: (n). */
void rotation_apply(const struct rotation_plan *p, double *x, double *tmp, bool back);

#endif
