#include "tests/support/in_short.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/backend.h"

static float tame(float x) { return isnan(x) ? -INFINITY : x > FLT_MAX ? FLT_MAX : x; }

static uint64_t rank_of(float x, int id) {
    uint32_t bits;
    x = tame(x) + 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &x, sizeof bits);
    return (uint64_t)(signbit(x) ? ~bits : bits | 0x80000000u) << 32 | (uint32_t)~id;
}

/* The better of what is there and this. */
static void insert(uint64_t *ranks, uint64_t rank) {
    int at = BACKEND_TOP - 1;
    if (rank <= ranks[at]) return;
    for (; at > 0 && ranks[at - 1] < rank; at--) ranks[at] = ranks[at - 1];
    ranks[at] = rank;
}

void in_short(const float *logits, int width, float temperature, uint64_t *ranks, uint64_t *sums) {
    float most = -INFINITY;
    memset(ranks, 0, BACKEND_TOP * sizeof *ranks);
    memset(sums, 0, (size_t)backend_spans(width) * sizeof *sums);
    for (int i = 0; i < width; i++) {
        insert(ranks, rank_of(logits[i], i));
        most = tame(logits[i]) > most ? tame(logits[i]) : most;
    }
    for (int i = 0; i < width && most > -INFINITY; i++) {
        double y = ((double)tame(logits[i]) - (double)most) / (double)temperature;
        sums[i / BACKEND_SPAN] += (uint64_t)ldexp(exp(y), BACKEND_SUM_BITS);
    }
}
