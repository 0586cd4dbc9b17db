/* Runs the blocks of a grid one after another, the threads of each as fibers. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/fiber.h"
#include "kernels/cuda/emu/races.h"

namespace emu {

indices here;

namespace {

enum { WARP = 32, GROUP = 128, SLOT = 64 };
enum state { READY, AT_BARRIER, AT_WARP, AT_GROUP, DONE };

struct warp {
    uint32_t mask, arrived;
    place at;
    int turn; /* which of the two sets of slots the next meeting fills */
    alignas(16) char slots[2][WARP][SLOT];
};

struct copy {
    void *to;
    const void *from;
    size_t bytes;
};

struct thread {
    state what;
    place at;
    int turn;          /* the set that its last meeting filled */
    uint32_t partners; /* of that meeting */
};

const std::function<void()> *body;
thread threads[MAX_FIBERS];
warp warps[MAX_FIBERS / WARP];
int n_threads, n_waiting, n_done, current;
place barrier_at;
std::vector<int> ready;
std::map<std::pair<const char *, int>, char *> arrays;
struct piece {
    char *at;
    size_t bytes;
};
std::vector<piece> allocated;
char *dynamic_bytes;
std::deque<std::vector<copy>> copies[MAX_FIBERS];  /* the last group is still open */
std::map<phase_barrier *, std::vector<copy>> bulk; /* copies of phases that have not ended */
int group_arrived[MAX_FIBERS / GROUP];
int idle_turns; /* turns of waiting threads since a phase ended */
uint64_t random_state;

/* Addresses that stand for an order. A barrier takes two in turns: who leaves late must not see as
 * ordered what others do before the next. Each block has its own, or one block's barriers would
 * order its accesses with those of a later block. */
char launch_begins, launch_ends;
struct orders {
    uint64_t barrier[2], warp[MAX_FIBERS / WARP][2];
};
orders *block_orders;
int barrier_turn;

uint64_t draw() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

char *poisoned(size_t bytes) {
    char *p = static_cast<char *>(aligned_alloc(16, (bytes + FENCE + 15) / 16 * 16));
    memset(p, 0xff, bytes);
    memset(p + bytes, FENCE_BYTE, FENCE);
    allocated.push_back({p, bytes});
    return p;
}

bool same(place a, place b) { return a.line == b.line && !strcmp(a.file, b.file); }

void wait_as(state what, place at) {
    int me = current;
    threads[me].what = what;
    threads[me].at = at;
    fiber_yield();
    current = me;
    here.thread = dim3((unsigned)me);
}

void wake(int i) {
    threads[i].what = READY;
    ready.push_back(i);
}

void thread_begin(int i) {
    unseen here_on;
    current = i;
    here.thread = dim3((unsigned)i);
    copies[i].assign(1, {});
    order_take(&launch_begins);
}

void thread_end(int i) {
    unseen here_on;
    order_give(&launch_ends);
    for (const std::vector<copy> &group : copies[i])
        if (!group.empty())
            fault(threads[i].at, "a thread ended with copies that nobody waited for");
    threads[i].what = DONE;
    n_done++;
    if (n_waiting) fault(barrier_at, "a thread ended before a barrier that others wait at");
}

void enter(int i) {
    thread_begin(i);
    (*body)();
    thread_end(i);
}

int next_ready() {
    size_t at = random_state ? (size_t)(draw() % ready.size()) : 0;
    int i = ready[at];
    if (random_state) {
        ready[at] = ready.back();
        ready.pop_back();
    } else {
        ready.erase(ready.begin());
    }
    return i;
}

void run_block() {
    ready.clear();
    n_waiting = n_done = barrier_turn = idle_turns = 0;
    memset(group_arrived, 0, sizeof group_arrived);
    bulk.clear();
    block_orders = new orders;
    fiber_next_set();
    for (int w = 0; w < n_threads / WARP; w++) warps[w].arrived = 0;
    for (int i = 0; i < n_threads; i++) {
        fiber_start(i, enter);
        threads[i] = thread{};
        ready.push_back(i);
    }
    while (!ready.empty()) {
        int i = next_ready();
        current = i;
        here.thread = dim3((unsigned)i);
        fiber_resume(i);
    }
    for (int i = 0; i < n_threads; i++)
        if (threads[i].what != DONE)
            fault(threads[i].at, "deadlock: thread %d of %d waits for a part of the block only", i,
                  n_threads);
    for (const piece &p : allocated) {
        if (!fence_is_whole(p.at + p.bytes, FENCE))
            fault(threads[0].at, "a thread wrote past the end of %zu bytes of shared memory",
                  p.bytes);
        free(p.at);
    }
    allocated.clear();
    arrays.clear();
    delete block_orders;
}

} // namespace

void fault(place at, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: emulation: ", at.file, at.line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    fflush(stderr);
    _Exit(99);
}

bool fence_is_whole(const void *fence, size_t bytes) {
    const unsigned char *at = static_cast<const unsigned char *>(fence);
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != FENCE_BYTE) return false;
    return true;
}

int lane() {
    unseen here_on;
    return current % WARP;
}

/* Called by the last to arrive, who does not get to go on first. */
static void leave_barrier() {
    n_waiting = 0;
    barrier_turn ^= 1;
    for (int i = 0; i < n_threads; i++)
        if (threads[i].what == AT_BARRIER) wake(i);
    int me = current;
    wake(me);
    fiber_yield();
    current = me;
    here.thread = dim3((unsigned)me);
}

void block_barrier(place at) {
    unseen here_on;
    uint64_t *order = &block_orders->barrier[barrier_turn];
    if (n_done) fault(at, "a thread ended before this barrier");
    if (n_waiting && !same(at, barrier_at))
        fault(at, "threads of the block are at different barriers (%s:%d)", barrier_at.file,
              barrier_at.line);
    barrier_at = at;
    order_give(order);
    if (++n_waiting < n_threads)
        wait_as(AT_BARRIER, at);
    else
        leave_barrier();
    order_take(order);
}

void warp_barrier(place at) {
    unseen here_on;
    int w = current / WARP;
    uint64_t *order = &block_orders->warp[w][warps[w].turn];
    order_give(order);
    warp_meet(at, 0xffffffffu, "", 1);
    order_take(order);
}

void warp_meet(place at, uint32_t mask, const void *mine, size_t bytes) {
    unseen here_on;
    warp &w = warps[current / WARP];
    int me = lane(), first = current - me;
    if (!(mask >> me & 1)) fault(at, "lane %d is not in its own mask %08x", me, mask);
    if (bytes > SLOT) fault(at, "%zu bytes are too many to exchange", bytes);
    if (w.arrived && (w.mask != mask || !same(w.at, at)))
        fault(at, "lanes of a warp are at different operations (%s:%d)", w.at.file, w.at.line);
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1 && (first + i >= n_threads || threads[first + i].what == DONE))
            fault(at, "mask %08x names lane %d, which has ended", mask, i);
    w.mask = mask;
    w.at = at;
    w.arrived |= 1u << me;
    memcpy(w.slots[w.turn][me], mine, bytes);
    threads[current].turn = w.turn;
    threads[current].partners = mask;
    if (w.arrived != mask) {
        wait_as(AT_WARP, at);
        return;
    }
    w.arrived = 0;
    w.turn ^= 1;
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1 && i != me) wake(first + i);
}

const void *warp_slot(place at, int from) {
    unseen here_on;
    const thread &t = threads[current];
    if (from < 0 || from >= WARP || !(t.partners >> from & 1))
        fault(at, "lane %d reads lane %d, which is not in mask %08x", lane(), from, t.partners);
    return warps[current / WARP].slots[t.turn][from];
}

void *shared_array(place at, size_t bytes) {
    unseen here_on;
    char *&p = arrays[{at.file, at.line}];
    if (!p) p = poisoned(bytes);
    size_t all = 0;
    for (const piece &each : allocated) all += each.bytes;
    if (all > most_shared())
        fault(at, "%zu bytes of shared memory, declared and dynamic; a block has %zu", all,
              most_shared());
    return p;
}

/* The copy may be made at any time up to the wait: it must be in order at both ends. */
void copy_later(void *to, const void *from, size_t bytes) {
    seen_write(to, bytes);
    if (from) seen_read(from, bytes);
    unseen here_on;
    copies[current].back().push_back({to, from, bytes});
}

void copies_commit() {
    unseen here_on;
    copies[current].emplace_back();
}

/* Takes the oldest group but the `but` last and the open one; false when there is none. */
static bool take_group(int but, std::vector<copy> *group) {
    unseen here_on;
    std::deque<std::vector<copy>> &groups = copies[current];
    if ((int)groups.size() - 1 <= but) return false;
    *group = std::move(groups.front());
    groups.pop_front();
    return true;
}

void copies_wait(int but) {
    std::vector<copy> group;
    while (take_group(but, &group))
        for (const copy &c : group) {
            seen_write(c.to, c.bytes);
            unseen here_on;
            if (c.from)
                memcpy(c.to, c.from, c.bytes);
            else
                memset(c.to, 0, c.bytes);
        }
}

/* The group's reads come before what any of its threads announces next. */
void group_meet(place at) {
    unseen here_on;
    int group = current / GROUP;
    order_give(&group_arrived[group]);
    if (++group_arrived[group] < GROUP) {
        wait_as(AT_GROUP, at);
    } else {
        group_arrived[group] = 0;
        for (int i = group * GROUP; i < (group + 1) * GROUP; i++) {
            if (i == current) continue;
            if (threads[i].what != AT_GROUP || !same(threads[i].at, at))
                fault(at, "warps of a group are at different operations");
            wake(i);
        }
    }
    order_take(&group_arrived[group]);
}

void phase_init_at(place, phase_barrier *b, int arrivals) {
    unseen here_on;
    *b = phase_barrier{arrivals, 0, 0, 0, 0};
}

void phase_arrive_at(place at, phase_barrier *b, size_t bytes) {
    unseen here_on;
    if (b->count < 1) fault(at, "a barrier that nobody has made");
    if (++b->arrived > b->count) fault(at, "more arrivals than the %d of a phase", b->count);
    b->expected += bytes;
    order_give(b);
}

void copy_bulk(void *to, const void *from, size_t bytes, phase_barrier *b) {
    unseen here_on;
    b->brought += bytes;
    bulk[b].push_back({to, from, bytes});
}

/* Ends the phase if everybody and all bytes are there. The copies are nobody's accesses. */
static void phase_end(phase_barrier *b) {
    if (b->arrived < b->count || b->brought != b->expected) return;
    for (const copy &c : bulk[b]) memcpy(c.to, c.from, c.bytes);
    bulk.erase(b);
    *b = phase_barrier{b->count, 0, b->phase ^ 1, 0, 0};
    idle_turns = 0;
}

void phase_wait_at(place at, phase_barrier *b, int parity) {
    unseen here_on;
    if (b->count < 1) fault(at, "a barrier that nobody has made");
    for (phase_end(b); b->phase == parity; phase_end(b)) {
        if (++idle_turns > 1 << 20) fault(at, "threads wait for a phase that does not end");
        int me = current;
        wake(me);
        fiber_yield();
        current = me;
        here.thread = dim3((unsigned)me);
    }
    order_take(b);
}

void *shared_dynamic() {
    unseen here_on;
    return dynamic_bytes;
}

void run_grid(dim3 grid, int threads_per_block, size_t shared,
              const std::function<void()> &the_body) {
    static uint64_t launch;
    order_give(&launch_begins);
    unseen here_on;
    const char *seed = getenv("GPTQT_EMU_SEED");
    uint64_t base = seed ? (uint64_t)atoll(seed) : 0;
    random_state = base ? base * 0x9e3779b97f4a7c15u + ++launch : 0;
    body = &the_body;
    n_threads = threads_per_block;
    size_t n = (size_t)grid.x * grid.y * grid.z;
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; i++) order[i] = i;
    for (size_t i = n; random_state && i > 1; i--) std::swap(order[i - 1], order[draw() % i]);
    for (size_t i : order) {
        here.threads = dim3((unsigned)threads_per_block);
        here.blocks = grid;
        here.block = dim3((unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y),
                          (unsigned)(i / grid.x / grid.y));
        dynamic_bytes = shared ? poisoned(shared) : nullptr;
        run_block();
    }
    order_take(&launch_ends);
}

} // namespace emu
