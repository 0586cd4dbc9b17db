#include "engine/eval_base.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sha256.h"
#include "kernels/error.h"
#include "kernels/float16.h"

struct header {
    char magic[8];
    int32_t vocab, ctx, chunks;
    char tokens[SHA256_HEX + 3]; /* digest, then zeros up to a multiple of four bytes */
};

static const char magic[8] = "GPTQTKL1";

static struct header make_header(const struct eval_base_key *key) {
    struct header h = {.vocab = key->vocab, .ctx = key->ctx, .chunks = key->chunks};
    struct sha256 sum;
    memcpy(h.magic, magic, sizeof magic);
    sha256_init(&sum);
    sha256_add(&sum, key->tokens, (size_t)key->chunks * (size_t)key->ctx * sizeof *key->tokens);
    sha256_end(&sum, h.tokens);
    return h;
}

int eval_base_create(struct eval_base_writer *ret, const char *path,
                     const struct eval_base_key *key, struct error *err) {
    struct eval_base_writer w = {.file.fd = -1, .vocab = key->vocab};
    struct header h = make_header(key);
    w.row = malloc((size_t)key->vocab * sizeof *w.row);
    if (!w.row) return error_set(err, -ENOMEM, "%s: out of memory", path);
    int r = atomic_file_open(&w.file, path, err);
    if (r == 0) r = atomic_file_write(&w.file, &h, sizeof h, err);
    if (r < 0) {
        eval_base_abandon(&w);
        return r;
    }
    *ret = w;
    return 0;
}

int eval_base_add(struct eval_base_writer *w, const float *logits, struct error *err) {
    float top = logits[0];
    for (int i = 1; i < w->vocab; i++)
        if (logits[i] > top) top = logits[i];
    for (int i = 0; i < w->vocab; i++) w->row[i] = f32_to_f16(logits[i] - top);
    return atomic_file_write(&w->file, w->row, (size_t)w->vocab * sizeof *w->row, err);
}

int eval_base_commit(struct eval_base_writer *w, struct error *err) {
    return atomic_file_commit(&w->file, err);
}

void eval_base_abandon(struct eval_base_writer *w) {
    /* A zeroed one has no file, whatever number 0 is. */
    if (w->row) atomic_file_close(&w->file);
    free(w->row);
    w->row = NULL;
}

static int check(const struct header *have, const struct header *want, size_t size,
                 const char *path, struct error *err) {
    if (memcmp(have->magic, magic, sizeof magic) != 0)
        return error_set(err, -EINVAL, "%s: not a file that gptqt eval --save-base wrote", path);
    if (have->vocab != want->vocab)
        return error_set(err, -EINVAL, "%s: a vocabulary of %d, the model has %d", path,
                         have->vocab, want->vocab);
    if (have->ctx != want->ctx || have->chunks != want->chunks)
        return error_set(err, -EINVAL, "%s: %d windows of %d, not %d of %d", path, have->chunks,
                         have->ctx, want->chunks, want->ctx);
    if (memcmp(have->tokens, want->tokens, sizeof have->tokens) != 0)
        return error_set(err, -EINVAL, "%s: made on another text or with another tokenizer", path);
    size_t rows = (size_t)want->chunks * (size_t)want->ctx;
    size_t wanted = sizeof *want + rows * (size_t)want->vocab * sizeof(uint16_t);
    if (size != wanted)
        return error_set(err, -EINVAL, "%s: %zu bytes instead of %zu", path, size, wanted);
    return 0;
}

int eval_base_open(struct eval_base *ret, const char *path, const struct eval_base_key *key,
                   struct error *err) {
    struct eval_base b = {.vocab = key->vocab};
    struct header want = make_header(key), have;
    int r = map_open(&b.map, path, err);
    if (r < 0) return r;
    if (b.map.size < sizeof have) {
        r = error_set(err, -EINVAL, "%s: %zu bytes are less than a header", path, b.map.size);
    } else {
        memcpy(&have, b.map.bytes, sizeof have);
        r = check(&have, &want, b.map.size, path, err);
    }
    if (r < 0) {
        map_close(&b.map);
        return r;
    }
    *ret = b;
    return 0;
}

void eval_base_row(const struct eval_base *b, int64_t position, float *ret) {
    size_t n = (size_t)b->vocab;
    const uint8_t *at =
        b->map.bytes + sizeof(struct header) + (size_t)position * n * sizeof(uint16_t);
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, at + i * sizeof half, sizeof half);
        ret[i] = f16_to_f32(half);
    }
}

void eval_base_close(struct eval_base *b) { map_close(&b->map); }
