#include "engine/bpe.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/buf.h"

struct bpe_cell {
    int32_t right;
    uint32_t rank;
};

/* A doubly linked list in an array; a merge keeps the left symbol and unlinks the right. */
struct bpe_symbol {
    int32_t id; /* -1: merged away */
    int32_t prev, next;
};

struct triple {
    int32_t left, right;
    uint32_t rank;
};

static int compare_triples(const void *x, const void *y) {
    const struct triple *a = x, *b = y;
    if (a->left != b->left) return a->left < b->left ? -1 : 1;
    if (a->right != b->right) return a->right < b->right ? -1 : 1;
    return a->rank < b->rank ? 1 : a->rank > b->rank ? -1 : 0;
}

static void fill_cells(struct bpe *b, const struct triple *sorted, uint32_t n, int n_ids) {
    uint32_t count = 0;
    int left = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (i && sorted[i].left == sorted[i - 1].left && sorted[i].right == sorted[i - 1].right)
            continue;
        while (left <= sorted[i].left) b->start[left++] = count;
        b->cells[count++] = (struct bpe_cell){sorted[i].right, sorted[i].rank};
    }
    while (left <= n_ids) b->start[left++] = count;
}

int bpe_init(struct bpe *b, struct bpe_merge *merges, uint32_t n_merges, int n_ids) {
    struct triple *sorted = malloc((n_merges + (size_t)1) * sizeof *sorted);
    uint32_t *start = malloc(((size_t)n_ids + 1) * sizeof *start);
    struct bpe_cell *cells = malloc((n_merges + (size_t)1) * sizeof *cells);
    if (!sorted || !start || !cells) {
        free(sorted);
        free(start);
        free(cells);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_merges; i++)
        sorted[i] = (struct triple){merges[i].left, merges[i].right, i};
    qsort(sorted, n_merges, sizeof *sorted, compare_triples);
    b->merges = merges;
    b->n_merges = n_merges;
    b->start = start;
    b->cells = cells;
    fill_cells(b, sorted, n_merges, n_ids);
    free(sorted);
    return 0;
}

void bpe_free(struct bpe *b) {
    free(b->merges);
    free(b->start);
    free(b->cells);
    *b = (struct bpe){0};
}

void bpe_work_free(struct bpe_work *work) {
    free(work->symbols);
    free(work->heap);
    *work = (struct bpe_work){0};
}

static bool find_rank(const struct bpe *b, int32_t left, int32_t right, uint32_t *ret) {
    uint32_t lo = b->start[left], hi = b->start[left + 1];
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (b->cells[mid].right < right)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == b->start[left + 1] || b->cells[lo].right != right) return false;
    *ret = b->cells[lo].rank;
    return true;
}

/* A binary heap of rank << 32 | position: the lowest rank first, then the leftmost. */
static int heap_push(struct bpe_work *work, uint64_t value) {
    if (work->n_heap == work->cap_heap) {
        size_t cap = work->cap_heap ? work->cap_heap * 2 : 64;
        uint64_t *heap = realloc(work->heap, cap * sizeof *heap);
        if (!heap) return -ENOMEM;
        work->heap = heap;
        work->cap_heap = cap;
    }
    size_t i = work->n_heap++;
    for (; i && work->heap[(i - 1) / 2] > value; i = (i - 1) / 2)
        work->heap[i] = work->heap[(i - 1) / 2];
    work->heap[i] = value;
    return 0;
}

static uint64_t heap_pop(struct bpe_work *work) {
    uint64_t top = work->heap[0], last = work->heap[--work->n_heap];
    size_t i = 0, n = work->n_heap;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && work->heap[child + 1] < work->heap[child]) child++;
        if (work->heap[child] >= last) break;
        work->heap[i] = work->heap[child];
        i = child;
    }
    work->heap[i] = last;
    return top;
}

/* Offers the symbol at `at` and its right neighbour for merging. */
static int offer(const struct bpe *b, struct bpe_work *work, int32_t at) {
    const struct bpe_symbol *s = work->symbols;
    uint32_t rank;
    if (at < 0 || s[at].next < 0 || !find_rank(b, s[at].id, s[s[at].next].id, &rank)) return 0;
    return heap_push(work, (uint64_t)rank << 32 | (uint32_t)at);
}

static int reserve_symbols(struct bpe_work *work, size_t n) {
    if (n <= work->cap_symbols) return 0;
    size_t cap = n < 256 ? 256 : n;
    struct bpe_symbol *symbols = realloc(work->symbols, cap * sizeof *symbols);
    if (!symbols) return -ENOMEM;
    work->symbols = symbols;
    work->cap_symbols = cap;
    return 0;
}

static int32_t load_symbols(const struct bpe *b, struct bpe_work *work, const char *word,
                            size_t n) {
    int32_t count = 0;
    bool after_unk = false;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_id[(unsigned char)word[i]];
        bool unknown = id < 0;
        if (unknown) id = b->fuse_unk && after_unk ? -1 : b->unk;
        after_unk = unknown;
        if (id < 0) continue;
        work->symbols[count] = (struct bpe_symbol){id, count - 1, count + 1};
        count++;
    }
    if (count) work->symbols[count - 1].next = -1;
    return count;
}

static int merge_all(const struct bpe *b, struct bpe_work *work, int32_t count) {
    struct bpe_symbol *s = work->symbols;
    int r = 0;
    work->n_heap = 0;
    for (int32_t i = 0; i < count && r == 0; i++) r = offer(b, work, i);
    while (r == 0 && work->n_heap) {
        uint64_t top = heap_pop(work);
        const struct bpe_merge *m = &b->merges[top >> 32];
        int32_t at = (int32_t)(uint32_t)top, next = s[at].next;
        /* An offer is stale when one of its two symbols has changed since. */
        if (s[at].id != m->left || next < 0 || s[next].id != m->right) continue;
        s[at].id = m->id;
        s[at].next = s[next].next;
        s[next].id = -1;
        if (s[at].next >= 0) s[s[at].next].prev = at;
        r = offer(b, work, s[at].prev);
        if (r == 0) r = offer(b, work, at);
    }
    return r;
}

int bpe_encode(const struct bpe *b, struct bpe_work *work, const char *word, size_t n,
               struct buf *ids) {
    int r = reserve_symbols(work, n);
    if (r < 0) return r;
    int32_t count = load_symbols(b, work, word, n);
    r = merge_all(b, work, count);
    for (int32_t i = count ? 0 : -1; i >= 0 && r == 0; i = work->symbols[i].next)
        r = buf_append(ids, &work->symbols[i].id, sizeof work->symbols[i].id);
    return r;
}
