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
