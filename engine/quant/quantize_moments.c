#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/config.h"
#include "engine/quant/calibrate.h"
#include "engine/quant/moments_file.h"
#include "engine/quant/quantize_state.h"
#include "engine/source.h"
#include "kernels/error.h"

/* All that decides about static moments; which processor summed them is left out, since that
 * moves the last bits only. */
static void make_key(struct quantize *q) {
    char model[SHA256_HEX], tokens[SHA256_HEX], text[64];
    bool rounded = q->o.moments == QUANTIZE_MOMENTS_ROUNDED;
    struct sha256 sum;
    source_hash(q->src, model);
    quantize_tokens_hash(q, tokens);
    snprintf(text, sizeof text, "%d %d %s %d", q->o.windows, q->o.ctx,
             quantize_tokens_name(q->o.tokens), rounded ? q->o.act_bits : 16);
    sha256_init(&sum);
    sha256_add(&sum, model, sizeof model);
    sha256_add(&sum, tokens, sizeof tokens);
    sha256_add(&sum, text, strlen(text));
    sha256_end(&sum, q->moments_key);
}

/* The file of a block, and where in memory its matrices are. */
static int place(struct quantize *q, int layer, struct moments_file *file, double *h[INPUT_COUNT],
                 struct error *err) {
    int width[INPUT_COUNT];
    for (int i = 0; i < INPUT_COUNT; i++)
        h[i] = calibrate_moments(q->calibrate, (enum calibrate_input)i, &width[i]);
    return moments_file_name(file, q->o.moments_folder, q->moments_key, layer, width, err);
}

int quantize_find_moments(struct quantize *q, struct error *err) {
    struct moments_file file;
    double *h[INPUT_COUNT];
    bool all = true;
    if (mkdir(q->o.moments_folder, 0777) < 0 && errno != EEXIST)
        return error_set(err, -errno, "moments: %s: %s", q->o.moments_folder, strerror(errno));
    make_key(q);
    for (int layer = q->shard.first; layer < q->shard.end; layer++) {
        int r = place(q, layer, &file, h, err);
        if (r < 0) return r;
        all = all && moments_file_there(&file);
    }
    q->has_moments = all;
    return 0;
}

int quantize_load_moments(struct quantize *q, int layer, struct error *err) {
    struct moments_file file;
    double *h[INPUT_COUNT];
    int r = place(q, layer, &file, h, err);
    return r == 0 ? moments_file_read(&file, h, err) : r;
}

int quantize_keep_moments(struct quantize *q, int layer, struct error *err) {
    struct moments_file file;
    double *h[INPUT_COUNT];
    int r = place(q, layer, &file, h, err);
    if (r < 0 || moments_file_there(&file)) return r;
    r = moments_file_write(&file, h, err);
    return r < 0 ? error_prefix(err, r, "moments") : 0;
}
