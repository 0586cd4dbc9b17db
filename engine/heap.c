#include "engine/heap.h"

/* DESIGN. A randomized meldable heap: two trees are merged along a path that a coin chooses, so
 * no shape is kept and no operation is ever slow by more than bad luck. A pairing heap is shorter
 * on average, but its first removal after n insertions costs n. */

static int toss(struct heap *h) {
    h->coins = h->coins * 6364136223846793005u + 1442695040888963407u;
    return (int)(h->coins >> 63);
}

static int meld(struct heap *h, int a, int b, int up) {
    int root = -1, *link = &root;
    while (a >= 0 && b >= 0) {
        if (h->before(h->arg, b, a)) {
            int swap = a;
            a = b;
            b = swap;
        }
        *link = a;
        h->nodes[a].up = up;
        up = a;
        link = &h->nodes[a].down[toss(h)];
        a = *link;
    }
    int rest = a >= 0 ? a : b;
    *link = rest;
    if (rest >= 0) h->nodes[rest].up = up;
    return root;
}

int heap_insert(struct heap *h, int root, int i) {
    h->nodes[i] = (struct heap_node){-1, {-1, -1}};
    return meld(h, root, i, -1);
}

int heap_remove(struct heap *h, int root, int i) {
    const struct heap_node *node = &h->nodes[i];
    int up = node->up, below = meld(h, node->down[0], node->down[1], up);
    if (up < 0) return below;
    h->nodes[up].down[h->nodes[up].down[1] == i] = below;
    return root;
}
