#include "engine/heap.h"

#include <criterion/criterion.h>

#include "tests/support/random.h"

enum { N = 300 };

static bool smaller(const void *arg, int a, int b) {
    const int *keys = arg;
    return keys[a] != keys[b] ? keys[a] < keys[b] : a < b;
}

Test(heap, the_first_comes_out_first) {
    int keys[N], root = -1;
    struct heap_node nodes[N];
    struct heap h = {.nodes = nodes, .before = smaller, .arg = keys};
    uint64_t seed = 4;
    for (int i = 0; i < N; i++) keys[i] = random_range(&seed, 0, 50);
    for (int i = 0; i < N; i++) root = heap_insert(&h, root, i);
    for (int i = 0, last = -1; i < N; i++) {
        cr_assert_geq(root, 0);
        cr_assert(last < 0 || smaller(keys, last, root));
        last = root;
        root = heap_remove(&h, root, root);
    }
    cr_expect_eq(root, -1);
}

/* Three queues over the same nodes; who is first is found by looking at all. */
static void random_operations(uint64_t seed) {
    int keys[N], queue[N], roots[3] = {-1, -1, -1};
    struct heap_node nodes[N];
    struct heap h = {.nodes = nodes, .before = smaller, .arg = keys};
    for (int i = 0; i < N; i++) queue[i] = -1;
    for (int step = 0; step < 4000; step++) {
        int i = random_range(&seed, 0, N - 1);
        if (queue[i] >= 0) {
            roots[queue[i]] = heap_remove(&h, roots[queue[i]], i);
            queue[i] = -1;
        } else {
            queue[i] = random_range(&seed, 0, 2);
            keys[i] = random_range(&seed, -5, 5);
            roots[queue[i]] = heap_insert(&h, roots[queue[i]], i);
        }
        for (int q = 0; q < 3; q++) {
            int first = -1;
            for (int j = 0; j < N; j++)
                if (queue[j] == q && (first < 0 || smaller(keys, j, first))) first = j;
            cr_assert_eq(roots[q], first, "seed %llu, step %d", (unsigned long long)seed, step);
        }
    }
}

Test(heap, any_one_can_leave) {
    for (uint64_t seed = 1; seed <= 10; seed++) random_operations(seed);
}

static int n_compared;

static bool counting(const void *arg, int a, int b) {
    n_compared++;
    return smaller(arg, a, b);
}

/* Orders that make other heaps slow. */
Test(heap, no_order_is_slow) {
    enum { MANY = 10000 };
    static int keys[MANY];
    static struct heap_node nodes[MANY];
    struct heap h = {.nodes = nodes, .before = counting, .arg = keys};
    for (int direction = -1; direction <= 1; direction++) {
        int root = -1, most = 0;
        for (int i = 0; i < 2 * MANY; i++) {
            n_compared = 0;
            if (i < MANY) {
                keys[i] = direction * i;
                root = heap_insert(&h, root, i);
            } else {
                root = heap_remove(&h, root, root);
            }
            if (n_compared > most) most = n_compared;
        }
        cr_expect_eq(root, -1);
        cr_expect_leq(most, 100, "%d", most);
    }
}
