#include "tests/support/scheduler_mirror.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv.h"
#include "tests/support/random.h"

void mirror_open(struct mirror *m, struct scheduler_options options, int n_blocks) {
    memset(m, 0, sizeof *m);
    m->options = options;
    m->seed = 1;
    cr_assert(options.max_running <= MIRROR_RUNNING && n_blocks <= MIRROR_BLOCKS);
    cr_assert(options.max_running + options.max_waiting <= MIRROR_SLOTS);
    cr_assert_leq(options.max_context, MIRROR_CONTEXT);
    cr_assert_eq(kv_new(&m->kv, n_blocks), 0);
    cr_assert_eq(scheduler_new(&m->s, &options, m->kv, NULL), 0);
}

static void free_sequence(struct mirror_sequence *seq) {
    free(seq->ids);
    free(seq);
}

void mirror_close(struct mirror *m) {
    scheduler_free(m->s);
    cr_expect_eq(kv_free_blocks(m->kv), kv_total_blocks(m->kv));
    kv_free(m->kv);
    for (int i = 0; i < MIRROR_SLOTS; i++)
        if (m->seqs[i]) free_sequence(m->seqs[i]);
}

static struct mirror_sequence *new_sequence(struct mirror *m) {
    struct mirror_sequence *seq = calloc(1, sizeof *seq);
    seq->ids = malloc(MIRROR_CONTEXT * sizeof *seq->ids);
    uint64_t seed = m->family ? (uint64_t)m->family : 1000 + random_next(&m->seed);
    for (int i = 0; i < MIRROR_CONTEXT; i++) seq->ids[i] = random_range(&seed, 0, 9999);
    return seq;
}

int mirror_add_claim(struct mirror *m, int n_tokens, int target, bool fresh,
                     const struct engine_claim *claim) {
    int slot = -1;
    struct mirror_sequence *seq = new_sequence(m);
    seq->fresh = fresh;
    seq->known = seq->prompt = n_tokens;
    seq->target = target;
    seq->age = m->ages;
    if (claim) seq->claim = *claim;
    struct scheduler_sequence view = {.ids = &seq->ids,
                                      .n_tokens = n_tokens,
                                      .n_max = target,
                                      .fresh = fresh,
                                      .claim = seq->claim};
    int r = scheduler_add(m->s, &slot, &view, NULL);
    if (r < 0) {
        free_sequence(seq);
        return r;
    }
    cr_assert(slot >= 0 && slot < m->options.max_running + m->options.max_waiting);
    cr_assert_null(m->seqs[slot], "slot %d was given twice", slot);
    m->seqs[slot] = seq;
    m->n_seqs++;
    m->ages++;
    return slot;
}

int mirror_add(struct mirror *m, int n_tokens, int target) {
    return mirror_add_claim(m, n_tokens, target, false, NULL);
}

void mirror_remove(struct mirror *m, int slot) {
    scheduler_remove(m->s, slot);
    free_sequence(m->seqs[slot]);
    m->seqs[slot] = NULL;
    m->n_seqs--;
}

void mirror_pause(struct mirror *m, int slot, bool paused) {
    scheduler_pause(m->s, slot, paused);
    m->seqs[slot]->paused = paused;
}

int mirror_expire(struct mirror *m) {
    int slot, n = 0;
    enum scheduler_limit limit;
    while ((slot = scheduler_expired(m->s, m->now, &limit)) >= 0) {
        const struct mirror_sequence *seq = m->seqs[slot];
        int64_t deadline = limit == LIMIT_QUEUE   ? seq->claim.queue_ns
                           : limit == LIMIT_FIRST ? seq->claim.first_ns
                                                  : seq->claim.total_ns;
        cr_assert(deadline > 0 && deadline <= m->now);
        cr_assert(limit != LIMIT_QUEUE || seq->steps == 0);
        cr_assert(limit != LIMIT_FIRST || seq->known == seq->prompt);
        mirror_remove(m, slot);
        n++;
    }
    return n;
}

/* What is called computed holds the ids of the sequence. */
static void check_computed(const struct mirror *m, const struct scheduler_share *share) {
    const struct mirror_sequence *seq = m->seqs[share->slot];
    for (int i = 0; i < share->start; i++) {
        int32_t block = share->blocks[i / BACKEND_KV_BLOCK];
        cr_assert_eq(m->store[block][i % BACKEND_KV_BLOCK], seq->ids[i],
                     "position %d of slot %d is another's", i, share->slot);
        cr_assert_eq(m->salts[block], seq->claim.salt);
    }
}

static void check_share(struct mirror *m, const struct scheduler_share *share) {
    struct mirror_sequence *seq = m->seqs[share->slot];
    cr_assert_not_null(seq);
    cr_assert_not(seq->paused, "slot %d is paused", share->slot);
    /* Either it goes on where it was, or it has started (again) on what is known. */
    cr_assert(share->start == seq->done ||
              (share->start % BACKEND_KV_BLOCK == 0 && share->start < seq->known));
    cr_assert(share->n >= 1 && share->start + share->n <= seq->known);
    cr_assert(share->n_drafts >= 0 && share->start + share->n + share->n_drafts < MIRROR_CONTEXT);
    cr_assert_eq(share->samples, share->start + share->n == seq->known);
    cr_assert(share->n_blocks >= kv_blocks_for(share->start + share->n + share->n_drafts));
    cr_assert(share->n_cached < seq->prompt);
    cr_assert(seq->steps > 0 || share->start == share->n_cached);
    if (seq->fresh && seq->steps == 0) cr_assert_eq(share->start, 0);
    for (int i = 0; i < share->n_blocks; i++)
        cr_assert(share->blocks[i] >= 0 && share->blocks[i] < kv_total_blocks(m->kv));
    check_computed(m, share);
}

int mirror_tokens(const struct mirror *m) {
    int tokens = 0;
    for (int i = 0; i < m->n_shares; i++) tokens += m->shares[i].n + m->shares[i].n_drafts;
    return tokens;
}

struct scheduler_stats mirror_stats(const struct mirror *m) {
    struct scheduler_stats stats;
    scheduler_get_stats(m->s, &stats);
    return stats;
}

/* The first in order, if it decoded in the last step: nothing can have taken its blocks. */
static int must_progress(const struct mirror *m) {
    const struct mirror_sequence *first = NULL;
    int slot = -1;
    for (int i = 0; i < MIRROR_SLOTS; i++) {
        const struct mirror_sequence *seq = m->seqs[i];
        if (!seq || seq->paused) continue;
        if (first && (first->claim.priority < seq->claim.priority ||
                      (first->claim.priority == seq->claim.priority && first->age < seq->age)))
            continue;
        first = seq;
        slot = i;
    }
    return first && first->last_step == m->steps && first->known == first->done + 1 ? slot : -1;
}

static void check_step(struct mirror *m) {
    bool has_share[MIRROR_SLOTS] = {false};
    cr_assert(m->n_shares <= m->options.max_running);
    for (int i = 0; i < m->n_shares; i++) {
        cr_assert_not(has_share[m->shares[i].slot]);
        has_share[m->shares[i].slot] = true;
        check_share(m, &m->shares[i]);
    }
    cr_assert(mirror_tokens(m) <= m->options.step_tokens, "%d tokens", mirror_tokens(m));
    struct scheduler_stats stats = mirror_stats(m);
    cr_assert_eq(stats.running + stats.waiting, m->n_seqs);
    cr_assert(stats.running <= m->options.max_running);
    int n_paused = 0;
    for (int i = 0; i < MIRROR_SLOTS; i++) n_paused += m->seqs[i] && m->seqs[i]->paused;
    cr_assert_eq(stats.paused, n_paused);
    cr_assert_eq(m->n_shares > 0, n_paused < m->n_seqs);
    int first = must_progress(m);
    if (first >= 0) cr_assert(has_share[first], "slot %d made no progress", first);
}

/* The keys and values of the share, and rubbish for its drafts. */
static void compute(struct mirror *m, const struct scheduler_share *share) {
    struct mirror_sequence *seq = m->seqs[share->slot];
    for (int i = share->start; i < share->start + share->n + share->n_drafts; i++) {
        int32_t block = share->blocks[i / BACKEND_KV_BLOCK];
        bool known = i < share->start + share->n;
        m->store[block][i % BACKEND_KV_BLOCK] = known ? seq->ids[i] : -1;
        m->salts[block] = seq->claim.salt;
    }
    seq->done = share->start + share->n;
    seq->steps++;
    seq->last_step = m->steps;
    m->by_tenant[seq->claim.tenant] += share->n;
    seq->tokens += share->n;
    m->computed += share->n;
}

bool mirror_has_share(const struct mirror *m, int slot) {
    for (int i = 0; i < m->n_shares; i++)
        if (m->shares[i].slot == slot) return true;
    return false;
}

/* Some of the drafts prove right: their keys and values are those of the ids after all. */
static int accept_drafts(struct mirror *m, const struct scheduler_share *share) {
    struct mirror_sequence *seq = m->seqs[share->slot];
    int n = share->n_drafts > 0 ? random_range(&m->seed, 0, share->n_drafts) : 0;
    for (int i = seq->known; i < seq->known + n; i++)
        m->store[share->blocks[i / BACKEND_KV_BLOCK]][i % BACKEND_KV_BLOCK] = seq->ids[i];
    seq->done += n;
    return n;
}

int mirror_step(struct mirror *m) {
    m->n_shares = scheduler_next(m->s, m->shares);
    check_step(m);
    m->steps++;
    for (int i = 0; i < m->n_shares; i++) compute(m, &m->shares[i]);
    int accepted[MIRROR_RUNNING];
    for (int i = 0; i < m->n_shares; i++) accepted[i] = accept_drafts(m, &m->shares[i]);
    scheduler_ran(m->s, m->shares, m->n_shares);
    for (int i = 0; i < m->n_shares; i++) {
        int slot = m->shares[i].slot;
        struct mirror_sequence *seq = m->seqs[slot];
        if (!m->shares[i].samples) continue;
        if (seq->known + accepted[i] >= seq->target) {
            mirror_remove(m, slot);
            m->finished++;
        } else {
            seq->known += accepted[i] + 1;
            scheduler_grow(m->s, slot, accepted[i] + 1);
        }
    }
    return m->n_shares;
}
