#include "server/json_quota.h"

#include <errno.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 64 << 10, ALIGN = 16, LARGE = PIECE / 4 };

struct piece {
    struct piece *next;
    size_t n; /* of a large allocation alone in its piece, else 0 */
    _Alignas(ALIGN) char bytes[];
};

static bool installed;

static _Thread_local struct {
    bool on;
    int code;    /* why the load was left */
    size_t left; /* of the bound */
    size_t room; /* at the end of the newest piece of small ones */
    char *at;    /* where that begins */
    struct piece *small, *large;
    jmp_buf leave;
} quota;

static void leave(int code) {
    quota.code = code;
    longjmp(quota.leave, 1);
}

static struct piece *add_piece(struct piece **list, size_t n) {
    if (n > quota.left) leave(-E2BIG);
    struct piece *piece = malloc(sizeof *piece + n);
    if (!piece) leave(-ENOMEM);
    quota.left -= n;
    piece->next = *list;
    piece->n = n;
    *list = piece;
    return piece;
}

static void *take(size_t n) {
    if (!quota.on) return malloc(n);
    if (n > quota.left) leave(-E2BIG);
    n = (n + ALIGN - 1) / ALIGN * ALIGN;
    if (n >= LARGE) return add_piece(&quota.large, n)->bytes;
    if (n > quota.room) {
        size_t size = quota.left < PIECE && quota.left >= n ? quota.left : PIECE;
        struct piece *piece = add_piece(&quota.small, size);
        quota.at = piece->bytes;
        quota.room = size;
    }
    void *p = quota.at;
    quota.at += n;
    quota.room -= n;
    return p;
}

/* Large ones are given back at once: buffers that have grown, tables of arrays. */
static void give(void *p) {
    if (!quota.on) {
        free(p);
        return;
    }
    for (struct piece **at = &quota.large; *at; at = &(*at)->next) {
        struct piece *piece = *at;
        if (piece->bytes != p) continue;
        *at = piece->next;
        quota.left += piece->n;
        free(piece);
        return;
    }
}

void json_quota_install(void) {
    installed = true;
    json_set_alloc_funcs(take, give);
    json_object_seed(0); /* at its first use otherwise, perhaps on two threads */
}

int json_quota_load(json_t **ret, const char *body, size_t n, size_t flags, size_t most,
                    json_error_t *where) {
    quota.on = installed;
    quota.left = most;
    quota.code = 0;
    if (quota.on && setjmp(quota.leave)) return quota.code;
    *ret = json_loadb(body, n, flags, where);
    return *ret ? 0 : -EBADMSG;
}

static void free_pieces(struct piece **list) {
    while (*list) {
        struct piece *piece = *list;
        *list = piece->next;
        free(piece);
    }
}

void json_quota_release(json_t *root) {
    if (!quota.on) {
        json_decref(root);
        return;
    }
    free_pieces(&quota.small);
    free_pieces(&quota.large);
    memset(&quota, 0, sizeof quota);
}
