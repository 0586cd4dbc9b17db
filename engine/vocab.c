#include "engine/vocab.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/utf8.h"
#include "kernels/error.h"

struct vocab_key {
    const char *bytes; /* of a VOCAB_BYTES entry, else the spelling */
    uint32_t n;
    int32_t id;
    int is_bytes;
};

/* The alphabet: printable Latin-1 stands for itself, the other 68 bytes in their order for
 * U+0100 and up. */
static bool is_printable(uint32_t c) {
    return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
}

static int byte_of(uint32_t code) {
    if (is_printable(code)) return (int)code;
    if (code < 256 || code > 256 + 67) return -1;
    uint32_t k = code - 256;
    return (int)(k < 33 ? k : k < 67 ? 127 + k - 33 : 173);
}

static uint32_t letter_of(unsigned char byte) {
    if (is_printable(byte)) return byte;
    return 256u + (byte < 33 ? byte : byte < 161 ? byte - 127u + 33u : 67u);
}

/* Writes the bytes (never more than n) and returns how many, or -1 when a character is not in
 * the alphabet. */
static long bytes_of(char *out, const char *spelling, size_t n) {
    long count = 0;
    for (size_t i = 0; i < n;) {
        struct utf8_char c = utf8_next(spelling + i, n - i);
        int byte = c.ok ? byte_of(c.code) : -1;
        if (byte < 0) return -1;
        out[count++] = (char)byte;
        i += (size_t)c.len;
    }
    return count;
}

int vocab_init(struct vocab *v, size_t n, size_t n_bytes, struct error *err) {
    *v = (struct vocab){0};
    if (n == 0 || n > VOCAB_MAX)
        return error_set(err, -EBADMSG, "vocabulary: %zu ids, limit %d", n, VOCAB_MAX);
    v->tokens = calloc(n, sizeof *v->tokens);
    v->index = calloc(n, sizeof *v->index);
    v->arena = malloc(n_bytes + 1);
    if (!v->tokens || !v->index || !v->arena)
        return error_set(err, -ENOMEM, "vocabulary: out of memory");
    v->n = (int)n;
    return 0;
}

void vocab_free(struct vocab *v) {
    free(v->tokens);
    free(v->index);
    free(v->arena);
    *v = (struct vocab){0};
}

int vocab_add(struct vocab *v, int32_t id, const char *spelling, size_t n, struct error *err) {
    if (!utf8_check(spelling, n))
        return error_set(err, -EBADMSG, "vocabulary: token %d is not UTF-8", (int)id);
    char *bytes = v->arena + v->used;
    long count = bytes_of(bytes, spelling, n);
    unsigned flags = VOCAB_MODEL | (count < 0 ? 0 : VOCAB_BYTES);
    if (count < 0) {
        memcpy(bytes, spelling, n);
        count = (long)n;
    }
    v->used += (size_t)count;
    v->tokens[id] = (struct vocab_token){bytes, (uint32_t)count, flags};
    v->index[v->n_index++] =
        (struct vocab_key){bytes, (uint32_t)count, id, (flags & VOCAB_BYTES) != 0};
    return 0;
}

int vocab_add_whole(struct vocab *v, int32_t id, const char *text, size_t n, bool special,
                    struct error *err) {
    struct vocab_token *token = &v->tokens[id];
    if (token->flags & VOCAB_ADDED)
        return error_set(err, -EBADMSG, "added_tokens: id %d twice", (int)id);
    if (!utf8_check(text, n))
        return error_set(err, -EBADMSG, "added_tokens: id %d is not UTF-8", (int)id);
    if (token->flags & VOCAB_MODEL) {
        struct buf spelling = {0};
        int r = vocab_spell(v, id, &spelling);
        bool same = r == 0 && spelling.len == n && memcmp(spelling.data, text, n) == 0;
        buf_free(&spelling);
        if (r < 0) return error_set(err, r, "vocabulary: out of memory");
        if (!same)
            return error_set(err, -EBADMSG, "added_tokens: id %d is another token in model.vocab",
                             (int)id);
    }
    char *bytes = v->arena + v->used;
    memcpy(bytes, text, n);
    v->used += n;
    token->bytes = bytes;
    token->n = (uint32_t)n;
    token->flags |= VOCAB_ADDED | (special ? VOCAB_SPECIAL : 0);
    return 0;
}

static int compare_keys(const void *left, const void *right) {
    const struct vocab_key *a = left, *b = right;
    if (a->is_bytes != b->is_bytes) return a->is_bytes < b->is_bytes ? -1 : 1;
    int order = memcmp(a->bytes, b->bytes, a->n < b->n ? a->n : b->n);
    if (order) return order;
    return a->n < b->n ? -1 : a->n > b->n;
}

int vocab_index(struct vocab *v, struct error *err) {
    qsort(v->index, v->n_index, sizeof *v->index, compare_keys);
    for (size_t i = 1; i < v->n_index; i++)
        if (compare_keys(&v->index[i - 1], &v->index[i]) == 0)
            return error_set(err, -EBADMSG, "vocabulary: tokens %d and %d are the same",
                             (int)v->index[i - 1].id, (int)v->index[i].id);
    return 0;
}

static int32_t find(const struct vocab *v, struct vocab_key key) {
    const struct vocab_key *hit =
        bsearch(&key, v->index, v->n_index, sizeof *v->index, compare_keys);
    return hit ? hit->id : -1;
}

int32_t vocab_find(const struct vocab *v, const char *bytes, size_t n) {
    if (n > UINT32_MAX) return -1;
    return find(v, (struct vocab_key){.bytes = bytes, .n = (uint32_t)n, .is_bytes = 1});
}

int32_t vocab_find_spelling(const struct vocab *v, const char *spelling, size_t n) {
    char small[256];
    if (n > UINT32_MAX) return -1;
    char *bytes = n <= sizeof small ? small : malloc(n);
    if (!bytes) return -1;
    long count = bytes_of(bytes, spelling, n);
    int32_t id = count >= 0 ? vocab_find(v, bytes, (size_t)count)
                            : find(v, (struct vocab_key){.bytes = spelling, .n = (uint32_t)n});
    if (bytes != small) free(bytes);
    return id;
}

int vocab_spell(const struct vocab *v, int32_t id, struct buf *out) {
    const struct vocab_token *token = &v->tokens[id];
    if ((token->flags & VOCAB_ADDED) || !(token->flags & VOCAB_BYTES))
        return buf_append(out, token->bytes, token->n);
    for (uint32_t i = 0; i < token->n; i++) {
        char letter[UTF8_MAX];
        int len = utf8_put(letter, letter_of((unsigned char)token->bytes[i]));
        int r = buf_append(out, letter, (size_t)len);
        if (r < 0) return r;
    }
    return 0;
}
