#include "kernels/rotation.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/weights.h"

/* Where the header keeps what, little endian. */
enum {
    AT_MAGIC = 0,
    AT_HEADER_BYTES = 4,
    AT_ROWS = 8,
    AT_COLS = 12,
    AT_IN_BASIS = 16,
    AT_IN_ORDER = 20,
    AT_OUT_BASIS = 24,
    AT_OUT_ORDER = 28, /* 0: no U */
    AT_IN_SIGNS = 32,
    AT_OUT_SIGNS = 40, /* 0: no U */
    AT_TOTAL = 48
};

static const char magic[4] = {'R', 'O', 'T', '1'};

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_le(uint8_t *p, int n, uint64_t v) {
    for (int i = 0; i < n; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static bool is_prime(int n) {
    for (int d = 2; d * d <= n; d++)
        if (n % d == 0) return false;
    return n > 1;
}

/* Whether there is such a matrix of this order. */
static bool is_basis(enum rotation_basis basis, int order) {
    switch (basis) {
    case ROTATION_ONE:
        return order == 1;
    case ROTATION_PALEY1:
        return order <= ROTATION_MAX_ORDER && order % 4 == 0 && is_prime(order - 1);
    case ROTATION_PALEY2:
        return order <= ROTATION_MAX_ORDER && order % 4 == 0 && (order / 2 - 1) % 4 == 1 &&
               is_prime(order / 2 - 1);
    case ROTATION_COSINE:
        return order >= 2 && order <= ROTATION_MAX_ORDER;
    default:
        return false;
    }
}

int rotation_choose(struct rotation *ret, int n, struct error *err) {
    int odd = n;
    while (odd % 2 == 0) odd /= 2;
    ret->n = n;
    ret->basis = ROTATION_ONE;
    ret->order = 1;
    if (n > ROTATION_MAX) goto refuse;
    if (odd == 1) return 0;
    for (int order = 4 * odd; n % order == 0 && order <= ROTATION_HADAMARD_ORDER; order *= 2) {
        for (int basis = ROTATION_PALEY1; basis <= ROTATION_PALEY2; basis++) {
            if (!is_basis((enum rotation_basis)basis, order)) continue;
            ret->basis = (enum rotation_basis)basis;
            ret->order = order;
            return 0;
        }
    }
    ret->basis = ROTATION_COSINE;
    ret->order = odd;
    if (odd <= ROTATION_MAX_ORDER) return 0;
refuse:
    return error_set(err, -ENOTSUP,
                     "incoherence: no fast rotation of %d: it may be %d at most and its odd factor, "
                     "%d, %d at most",
                     n, ROTATION_MAX, odd, ROTATION_MAX_ORDER);
}

static size_t words(int n) { return ((size_t)n + 31) / 32; }

bool rotation_same(const struct rotation *a, const struct rotation *b) {
    if (a->n != b->n || a->n == 0) return a->n == b->n;
    return a->basis == b->basis && a->order == b->order &&
           (a->signs == b->signs || !memcmp(a->signs, b->signs, words(a->n) * sizeof *a->signs));
}

struct layout {
    size_t in, out, total;
};

static struct layout lay_out(int rows, int cols, bool has_out) {
    struct layout l = {.in = ROTATION_HEADER_BYTES};
    size_t end = l.in + words(cols) * 4;
    if (has_out) {
        l.out = end;
        end += words(rows) * 4;
    }
    l.total = (end + ROTATION_ALIGN - 1) / ROTATION_ALIGN * ROTATION_ALIGN;
    return l;
}

size_t rotation_bytes(int rows, int cols, bool has_out) {
    return lay_out(rows, cols, has_out).total;
}

static void write_header(uint8_t *p, const struct layout *l, const struct rotation_view *v) {
    memcpy(p + AT_MAGIC, magic, sizeof magic);
    put_le(p + AT_HEADER_BYTES, 4, ROTATION_HEADER_BYTES);
    put_le(p + AT_ROWS, 4, (uint64_t)v->rows);
    put_le(p + AT_COLS, 4, (uint64_t)v->cols);
    put_le(p + AT_IN_BASIS, 4, (uint64_t)v->in.basis);
    put_le(p + AT_IN_ORDER, 4, (uint64_t)v->in.order);
    put_le(p + AT_OUT_BASIS, 4, (uint64_t)v->out.basis);
    put_le(p + AT_OUT_ORDER, 4, (uint64_t)v->out.order);
    put_le(p + AT_IN_SIGNS, 8, l->in);
    put_le(p + AT_OUT_SIGNS, 8, l->out);
    put_le(p + AT_TOTAL, 8, l->total);
}

static void point(struct rotation_view *v, const void *block, const struct layout *l) {
    const uint8_t *p = block;
    v->in.signs = (const uint32_t *)(const void *)(p + l->in);
    v->out.signs = v->out.n ? (const uint32_t *)(const void *)(p + l->out) : NULL;
    v->total = l->total;
}

static int bad(struct error *err, const char *what) {
    return error_set(err, -EBADMSG, "rotation: %s", what);
}

static int read_side(struct rotation *r, int n, const uint8_t *p, const char *side,
                     struct error *err) {
    uint32_t basis = get_u32(p), order = get_u32(p + 4);
    if (basis > ROTATION_COSINE || order > ROTATION_MAX_ORDER ||
        !is_basis((enum rotation_basis)basis, (int)order))
        return error_set(err, -EBADMSG, "rotation: %s: no basis %u of order %u", side, basis,
                         order);
    int length = n / (int)order;
    if (n > ROTATION_MAX || n % (int)order || length & (length - 1))
        return error_set(err, -EBADMSG, "rotation: %s: %d is not %u times a power of two, %d at most",
                         side, n, order, ROTATION_MAX);
    *r = (struct rotation){n, (enum rotation_basis)basis, (int)order, NULL};
    return 0;
}

static bool tail_is_clear(const struct rotation *r) {
    return r->n % 32 == 0 || r->signs[r->n / 32] >> r->n % 32 == 0;
}

int rotation_parse(struct rotation_view *ret, const void *bytes, size_t n_bytes,
                   struct error *err) {
    const uint8_t *p = bytes;
    uint8_t header[ROTATION_HEADER_BYTES] = {0};
    if (n_bytes < ROTATION_HEADER_BYTES) return bad(err, "shorter than a header");
    if ((uintptr_t)bytes % ROTATION_ALIGN) return bad(err, "the block is not aligned");
    if (memcmp(p, magic, sizeof magic)) return bad(err, "no magic ROT1");
    uint32_t rows = get_u32(p + AT_ROWS), cols = get_u32(p + AT_COLS);
    if (rows < 1 || rows > BCQ_MAX_DIM || cols < 1 || cols > BCQ_MAX_DIM)
        return error_set(err, -EBADMSG, "rotation: %u rows of %u columns are out of range", rows,
                         cols);
    struct rotation_view v = {.rows = (int)rows, .cols = (int)cols};
    int rc = read_side(&v.in, v.cols, p + AT_IN_BASIS, "inputs", err);
    if (rc == 0 && get_u32(p + AT_OUT_ORDER))
        rc = read_side(&v.out, v.rows, p + AT_OUT_BASIS, "outputs", err);
    if (rc < 0) return rc;
    struct layout l = lay_out(v.rows, v.cols, v.out.n != 0);
    write_header(header, &l, &v);
    if (memcmp(header, p, sizeof header)) return bad(err, "the header contradicts itself");
    if (l.total != n_bytes) return bad(err, "the block is not as long as its header says");
    point(&v, bytes, &l);
    if (!tail_is_clear(&v.in) || !tail_is_clear(&v.out)) return bad(err, "signs past the last");
    *ret = v;
    return 0;
}

void rotation_format(struct rotation_view *ret, void *block, int rows, int cols,
                     const struct rotation *in, const struct rotation *out) {
    struct layout l = lay_out(rows, cols, out != NULL);
    *ret = (struct rotation_view){.rows = rows, .cols = cols, .in = *in};
    if (out) ret->out = *out;
    write_header(block, &l, ret);
    point(ret, block, &l);
}

/* 0, or 1 or -1 as a is a square modulo the prime q or not. */
static int character(int a, int q) {
    a = (a % q + q) % q;
    if (a == 0) return 0;
    for (int i = 1; i <= q / 2; i++)
        if (i * i % q == a) return 1;
    return -1;
}

/* Paley 1933: I + S of order q + 1, S skew with a border of ones around the characters. */
static int paley1(int i, int j, int order) {
    if (i == j) return 1;
    if (i == 0) return 1;
    if (j == 0) return -1;
    return character(i - j, order - 1);
}

/* The same of a symmetric conference matrix C: C x (1 1; 1 -1) + I x (1 -1; -1 -1). */
static int paley2(int i, int j, int order) {
    int a = i / 2, b = j / 2;
    bool low = i % 2 && j % 2;
    if (a == b) return i % 2 == 0 && j % 2 == 0 ? 1 : -1;
    int c = a == 0 || b == 0 ? 1 : character(a - b, order / 2 - 1);
    return low ? -c : c;
}

static double entry(const struct rotation *r, int i, int j) {
    double scale = sqrt(1.0 / r->order);
    if (r->basis == ROTATION_PALEY1) return scale * paley1(i, j, r->order);
    if (r->basis == ROTATION_PALEY2) return scale * paley2(i, j, r->order);
    double turn = acos(-1.0) * (2 * j + 1) * i / (2.0 * r->order);
    return scale * (i ? sqrt(2.0) * cos(turn) : 1.0);
}

int rotation_plan_init(struct rotation_plan *ret, const struct rotation *r, struct error *err) {
    struct rotation_plan p = {.r = *r, .length = r->n / r->order};
    if (r->basis != ROTATION_ONE) {
        p.basis = malloc((size_t)r->order * (size_t)r->order * sizeof *p.basis);
        if (!p.basis) return error_set(err, -ENOMEM, "rotation: out of memory");
        for (int i = 0; i < r->order; i++)
            for (int j = 0; j < r->order; j++) p.basis[i * r->order + j] = entry(r, i, j);
    }
    *ret = p;
    return 0;
}

void rotation_plan_free(struct rotation_plan *p) {
    free(p->basis);
    p->basis = NULL;
}

static void turn_signs(const struct rotation *r, double *x) {
    for (int i = 0; i < r->n; i++)
        if (r->signs[i / 32] >> i % 32 & 1) x[i] = -x[i];
}

/* x = H x of a power of two, in natural order, over its square root. */
static void hadamard(double *x, int n) {
    for (int half = 1; half < n; half *= 2)
        for (int i = 0; i < n; i++) {
            if (i & half) continue;
            double a = x[i], b = x[i + half];
            x[i] = a + b;
            x[i + half] = a - b;
        }
    double scale = 1.0 / sqrt(n);
    for (int i = 0; i < n; i++) x[i] *= scale;
}

/* Mixes the segments by B or its transpose. */
static void mix(const struct rotation_plan *p, double *x, double *tmp, bool back) {
    int order = p->r.order, length = p->length;
    memset(tmp, 0, (size_t)p->r.n * sizeof *tmp);
    for (int a = 0; a < order; a++)
        for (int c = 0; c < order; c++) {
            double m = back ? p->basis[c * order + a] : p->basis[a * order + c];
            for (int b = 0; b < length; b++) tmp[a * length + b] += m * x[c * length + b];
        }
    memcpy(x, tmp, (size_t)p->r.n * sizeof *x);
}

void rotation_apply(const struct rotation_plan *p, double *x, double *tmp, bool back) {
    if (!back) turn_signs(&p->r, x);
    for (int a = 0; a < p->r.order; a++) hadamard(x + a * p->length, p->length);
    if (p->basis) mix(p, x, tmp, back);
    if (back) turn_signs(&p->r, x);
}
