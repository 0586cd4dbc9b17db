#include <assert.h>
#include <string.h>

#include "engine/scheduler_state.h"

/* -- Waiting ----------------------------------------------------------------------------------- */

static struct lane *lane_of(struct scheduler *s, const struct entry *e) {
    return &s->lanes[e->claim.tenant];
}

static void note_best(const struct scheduler *s, struct lane *lane) {
    lane->priority = s->entries[lane->queue].claim.priority;
    lane->age = s->entries[lane->queue].age;
}

void queue_insert(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    struct lane *lane = lane_of(s, e);
    if (lane->queue < 0) {
        lane->place = s->n_waiting_lanes;
        s->waiting_lanes[s->n_waiting_lanes++] = e->claim.tenant;
    }
    lane->queue = heap_insert(&s->queues, lane->queue, slot);
    note_best(s, lane);
    e->state = ENTRY_WAITING;
}

static void unqueue(struct scheduler *s, int slot) {
    struct lane *lane = lane_of(s, &s->entries[slot]);
    lane->queue = heap_remove(&s->queues, lane->queue, slot);
    if (lane->queue >= 0) {
        note_best(s, lane);
        return;
    }
    int last = s->waiting_lanes[--s->n_waiting_lanes];
    s->waiting_lanes[lane->place] = last;
    s->lanes[last].place = lane->place;
}

/* -- Parked ------------------------------------------------------------------------------------ */

void queue_park(struct scheduler *s, int slot, int leader, int blocks_wanted) {
    struct entry *e = &s->entries[slot], *l = &s->entries[leader];
    unqueue(s, slot);
    e->state = ENTRY_PARKED;
    e->leader = leader;
    e->blocks_wanted = blocks_wanted;
    e->prev_parked = -1;
    e->next_parked = l->followers;
    if (l->followers >= 0) s->entries[l->followers].prev_parked = slot;
    l->followers = slot;
}

static void unpark(struct scheduler *s, int slot) {
    struct entry *e = &s->entries[slot];
    if (e->prev_parked >= 0)
        s->entries[e->prev_parked].next_parked = e->next_parked;
    else
        s->entries[e->leader].followers = e->next_parked;
    if (e->next_parked >= 0) s->entries[e->next_parked].prev_parked = e->prev_parked;
}

void queue_remove(struct scheduler *s, int slot) {
    if (s->entries[slot].state == ENTRY_PARKED)
        unpark(s, slot);
    else
        unqueue(s, slot);
}

void queue_wake(struct scheduler *s, struct entry *e, bool all) {
    for (int slot = e->followers, next; slot >= 0; slot = next) {
        next = s->entries[slot].next_parked;
        if (!all && s->entries[slot].blocks_wanted > e->n_public) continue;
        unpark(s, slot);
        queue_insert(s, slot);
    }
}

/* -- Running ----------------------------------------------------------------------------------- */

/* Where slot stands in the order of those that run, or would. */
static int running_place(const struct scheduler *s, int slot) {
    int low = 0, high = s->n_running;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (entry_before(&s->entries[s->running[middle]], &s->entries[slot]))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void running_insert(struct scheduler *s, int slot) {
    int place = running_place(s, slot);
    memmove(s->running + place + 1, s->running + place,
            (size_t)(s->n_running - place) * sizeof *s->running);
    s->running[place] = slot;
    s->n_running++;
    s->entries[slot].state = ENTRY_RUNNING;
}

void running_remove(struct scheduler *s, int slot) {
    int place = running_place(s, slot);
    assert(s->running[place] == slot);
    s->n_running--;
    memmove(s->running + place, s->running + place + 1,
            (size_t)(s->n_running - place) * sizeof *s->running);
}
