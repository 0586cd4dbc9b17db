#include "engine/quant/shard.h"

#include <errno.h>
#include <string.h>

#include "kernels/error.h"

bool shard_is_whole(const struct shard *s) { return s->first == 0 && s->end == s->n_layers; }

int shard_check(const struct shard *s, struct error *err) {
    if (s->first >= 0 && s->first < s->end && s->end <= s->n_layers) return 0;
    return error_set(err, -EINVAL, "layers: %d:%d is no range within the model's blocks 0:%d",
                     s->first, s->end, s->n_layers);
}

/* Value of the digits at text up to a dot or the end; -1 when it is no such number. */
static int component(const char *text, size_t n) {
    int value = 0;
    if (n == 0 || n > 7) return -1;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') return -1;
        value = 10 * value + (text[i] - '0');
    }
    return value;
}

int shard_block_of(const char *tensor, int n_layers) {
    for (const char *at = tensor; *at;) {
        size_t n = strcspn(at, ".");
        int value = component(at, n);
        if (value >= 0) return value < n_layers ? value : -1;
        at += n + (at[n] == '.');
    }
    return -1;
}

bool shard_owns(const struct shard *s, const char *tensor) {
    int block = shard_block_of(tensor, s->n_layers);
    if (block < 0) block = 0;
    return block >= s->first && block < s->end;
}

json_t *shard_describe(const struct shard *s, const char *model, const char *tokens) {
    return json_pack("{s:i, s:i, s:i, s:s, s:s, s:s, s:[]}", "first", s->first, "end", s->end,
                     "blocks", s->n_layers, "model", model, "text", tokens, "version",
                     GPTQT_VERSION, "matrices");
}

int shard_add_matrix(json_t *shard, const char *name, const char *role, int layer) {
    json_t *entry = json_pack("{s:s, s:s, s:i}", "name", name, "role", role, "layer", layer);
    return entry ? json_array_append_new(json_object_get(shard, "matrices"), entry) : -1;
}
