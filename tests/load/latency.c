#include "tests/load/latency.h"

/* Values below LATENCY_FINE have a bucket each; above, every doubling has LATENCY_FINE. */
static int bucket_of(int64_t ns) {
    int shift = 0;
    while (ns >> shift >= 2 * LATENCY_FINE) shift++;
    int64_t bucket = shift * LATENCY_FINE + (ns >> shift);
    return bucket < LATENCY_BUCKETS ? (int)bucket : LATENCY_BUCKETS - 1;
}

static int64_t upper_edge(int bucket) {
    int shift = bucket / LATENCY_FINE - 1;
    if (shift < 0) return bucket;
    return ((int64_t)(bucket % LATENCY_FINE + LATENCY_FINE + 1) << shift) - 1;
}

void latency_add(struct latency *l, int64_t ns) {
    if (ns < 0) ns = 0;
    l->n++;
    l->sum_ns += (double)ns;
    if (ns > l->max_ns) l->max_ns = ns;
    l->counts[bucket_of(ns)]++;
}

int64_t latency_at(const struct latency *l, double fraction) {
    uint64_t wanted = (uint64_t)(fraction * (double)l->n), seen = 0;
    if (wanted >= l->n) return l->max_ns;
    for (int i = 0; i < LATENCY_BUCKETS; i++) {
        seen += l->counts[i];
        if (seen <= wanted) continue;
        int64_t edge = upper_edge(i);
        return edge < l->max_ns ? edge : l->max_ns;
    }
    return l->max_ns;
}
