#include "engine/pvq.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

struct pvq {
    int dims, norm;
    struct pvq_number *counts; /* (dims + 1, norm + 1) */
};

static void add(struct pvq_number *a, const struct pvq_number *b) {
    uint64_t carry = 0;
    for (int i = 0; i < PVQ_LIMBS; i++) {
        uint64_t sum = a->limb[i] + carry;
        carry = sum < carry;
        sum += b->limb[i];
        carry += sum < b->limb[i];
        a->limb[i] = sum;
    }
}

static void subtract(struct pvq_number *a, const struct pvq_number *b) {
    uint64_t borrow = 0;
    for (int i = 0; i < PVQ_LIMBS; i++) {
        uint64_t was = a->limb[i], less = was - borrow;
        borrow = was < borrow;
        borrow += less < b->limb[i];
        a->limb[i] = less - b->limb[i];
    }
}

static bool below(const struct pvq_number *a, const struct pvq_number *b) {
    for (int i = PVQ_LIMBS - 1; i >= 0; i--)
        if (a->limb[i] != b->limb[i]) return a->limb[i] < b->limb[i];
    return false;
}

static struct pvq_number *at(const struct pvq *p, int dims, int norm) {
    return &p->counts[(size_t)dims * (size_t)(p->norm + 1) + (size_t)norm];
}

int pvq_new(struct pvq **ret, int dims, int norm, struct error *err) {
    struct pvq *p = calloc(1, sizeof *p);
    if (p) {
        p->dims = dims;
        p->norm = norm;
        p->counts = calloc((size_t)(dims + 1) * (size_t)(norm + 1), sizeof *p->counts);
    }
    if (!p || !p->counts) {
        pvq_free(p);
        return error_set(err, -ENOMEM, "pyramid counts: out of memory");
    }
    for (int n = 0; n <= dims; n++) at(p, n, 0)->limb[0] = 1;
    for (int n = 1; n <= dims; n++) {
        for (int k = 1; k <= norm; k++) {
            *at(p, n, k) = *at(p, n - 1, k);
            add(at(p, n, k), at(p, n, k - 1));
            add(at(p, n, k), at(p, n - 1, k - 1));
        }
    }
    *ret = p;
    return 0;
}

void pvq_free(struct pvq *p) {
    if (!p) return;
    free(p->counts);
    free(p);
}

const struct pvq_number *pvq_count(const struct pvq *p, int dims, int norm) {
    return at(p, dims, norm);
}

int pvq_bits(const struct pvq *p, int dims, int norm) {
    static const struct pvq_number one = {{1}};
    struct pvq_number last = *at(p, dims, norm);
    subtract(&last, &one);
    int i = PVQ_LIMBS - 1;
    while (i >= 0 && last.limb[i] == 0) i--;
    return i < 0 ? 0 : 64 * i + 64 - __builtin_clzll(last.limb[i]);
}

void pvq_index(const struct pvq *p, const int *vector, int dims, int norm, struct pvq_number *ret) {
    struct pvq_number number = {{0}};
    for (int i = 0; i < dims; i++) {
        int rest = dims - i - 1, size = abs(vector[i]);
        if (size > 0) add(&number, at(p, rest, norm));
        for (int j = 1; j < size; j++) {
            add(&number, at(p, rest, norm - j));
            add(&number, at(p, rest, norm - j));
        }
        if (vector[i] < 0) add(&number, at(p, rest, norm - size));
        norm -= size;
    }
    *ret = number;
}

/* The next coordinate of the vector that number, counted from the first with these dims and norm,
 * belongs to; number is left counted among those that begin so. */
static int next(const struct pvq *p, struct pvq_number *number, int rest, int norm) {
    if (below(number, at(p, rest, norm))) return 0;
    subtract(number, at(p, rest, norm));
    for (int size = 1;; size++) {
        const struct pvq_number *each = at(p, rest, norm - size);
        if (below(number, each)) return size;
        subtract(number, each);
        if (below(number, each)) return -size;
        subtract(number, each);
    }
}

int pvq_vector(const struct pvq *p, const struct pvq_number *number, int dims, int norm,
               int *vector, struct error *err) {
    struct pvq_number left = *number;
    /* Below the count the steps of next() end at norm at the latest. */
    if (!below(number, at(p, dims, norm)))
        return error_set(err, -EBADMSG, "a number is past the pyramid of %d integers and norm %d",
                         dims, norm);
    for (int i = 0; i < dims; i++) {
        vector[i] = next(p, &left, dims - i - 1, norm);
        norm -= abs(vector[i]);
    }
    return 0;
}
