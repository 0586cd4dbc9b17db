#include "engine/quant/output.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/quant/parallel.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "kernels/float16.h"

enum { GROUP = BCQ_WHOLE_GROUP, ROWS = 64 /* of a piece of work */, TRIES = 11, NAME_SIZE = 224 };

struct job {
    const struct source *src;
    const struct source_tensor *tensor;
    const struct bcq_view *view;
    double *wrong, *all; /* (pieces) squares */
    int *rc;             /* (pieces) */
};

int output_check(int bits, struct error *err) {
    if (bits == 16 || bits == 8 || bits == 6 || bits == 4) return 0;
    return error_set(err, -EINVAL, "output bits: %d is not 16, 8, 6 or 4", bits);
}

static int code_of(float w, float up, int zero) {
    float c = rintf(w * up) + (float)zero, most = (float)(2 * zero - 1);
    return (int)(c < 0 ? 0 : c > most ? most : c);
}

/* Squared error under a scale that fp16 holds; the best scale for its codes on the way. */
static double error_of(const float *w, int n, float scale, int zero, float *refit) {
    double error = 0, up = 0, down = 0;
    for (int k = 0; k < n; k++) {
        double c = code_of(w[k], scale != 0.0f ? 1 / scale : 0, zero) - zero;
        double d = (double)w[k] - (double)scale * c;
        error += d * d;
        up += (double)w[k] * c;
        down += c * c;
    }
    *refit = down > 0 ? (float)(up / down) : 0;
    return error;
}

static float halved(float x) { return f16_to_f32(f32_to_f16(x)); }

double output_group(uint8_t *codes, float *scale, const float *w, int n, int bits) {
    int zero = 1 << (bits - 1);
    float most = 0, best = 0, refit;
    for (int k = 0; k < n; k++)
        if (fabsf(w[k]) > fabsf(most)) most = w[k];
    double least = INFINITY;
    /* The largest goes to code 0, which has no counterpart above, or to one of its neighbours. */
    for (int i = 0; i < 2 * TRIES; i++) {
        float end = (float)zero + 0.2f - 0.12f * (float)(i / 2);
        float s = halved(most / (i % 2 ? end - 1 : -end));
        double error = error_of(w, n, s, zero, &refit);
        if (error < least) least = error, best = s;
        s = halved(refit);
        error = error_of(w, n, s, zero, &refit);
        if (error < least) least = error, best = s;
    }
    for (int k = 0; k < n; k++)
        codes[k] = (uint8_t)code_of(w[k], best != 0.0f ? 1 / best : 0, zero);
    *scale = best;
    return least;
}

static void put_codes(const struct bcq_view *v, int row, int first, const uint8_t *codes, int n) {
    size_t words = (size_t)v->layout.plane_words, bits = (size_t)v->spec.bits;
    uint32_t *planes = (uint32_t *)(uintptr_t)v->planes + (size_t)row * bits * words;
    for (int k = 0; k < n; k++)
        for (size_t i = 0; i < bits; i++)
            planes[i * words + (size_t)(first + k) / 32] |= (uint32_t)(codes[k] >> i & 1)
                                                            << (first + k) % 32;
}

static int code_row(const struct job *job, size_t piece, int row, const float *w) {
    const struct bcq_view *v = job->view;
    uint16_t *scales = (uint16_t *)(uintptr_t)v->alpha + (size_t)row * (size_t)v->layout.n_groups;
    for (int k = 0; k < v->spec.cols; k += GROUP) {
        uint8_t codes[GROUP];
        float scale;
        int n = v->spec.cols - k < GROUP ? v->spec.cols - k : GROUP;
        job->wrong[piece] += output_group(codes, &scale, w + k, n, v->spec.bits);
        for (int i = 0; i < n; i++) job->all[piece] += (double)w[k + i] * (double)w[k + i];
        if (!(fabsf(scale) <= 65504.0f)) return -ERANGE;
        scales[k / GROUP] = f32_to_f16(scale);
        put_codes(v, row, k, codes, n);
    }
    return 0;
}

static void code_rows(void *arg, size_t piece) {
    struct job *job = arg;
    int first = (int)piece * ROWS, n = job->view->spec.rows - first;
    size_t cols = (size_t)job->view->spec.cols;
    if (n > ROWS) n = ROWS;
    float *w = malloc((size_t)n * cols * sizeof *w);
    int r = w ? source_read_rows(job->src, job->tensor, first, n, w, NULL) : -ENOMEM;
    for (int i = 0; r == 0 && i < n; i++) r = code_row(job, piece, first + i, w + (size_t)i * cols);
    free(w);
    job->rc[piece] = r;
}

static int code_matrix(struct job *job, struct output_result *ret, int n_threads,
                       struct error *err) {
    size_t pieces = ((size_t)job->view->spec.rows + ROWS - 1) / ROWS;
    double wrong = 0, all = 0;
    int r = 0;
    job->wrong = calloc(2 * pieces, sizeof *job->wrong);
    job->rc = calloc(pieces, sizeof *job->rc);
    if (!job->wrong || !job->rc) r = -ENOMEM;
    if (r == 0) {
        job->all = job->wrong + pieces;
        parallel_for(n_threads, pieces, code_rows, job);
    }
    for (size_t i = 0; r == 0 && i < pieces; i++) {
        r = job->rc[i];
        wrong += job->wrong[i];
        all += job->all[i];
    }
    free(job->wrong);
    free(job->rc);
    if (r < 0) return error_set(err, r, r == -ERANGE ? "a scale is beyond fp16" : "cannot be read");
    ret->decibels = wrong > 0 ? 10 * log10(wrong / all) : -INFINITY;
    return 0;
}

static int make(struct output_result *ret, struct checkpoint_writer *w, const struct source *src,
                const struct source_tensor *t, const struct bcq_spec *spec, const char *coded,
                int n_threads, struct error *err) {
    struct bcq_layout layout;
    struct bcq_view view;
    bcq_layout(&layout, spec);
    void *block = aligned_alloc(BCQ_ALIGN, (size_t)layout.total);
    if (!block) return error_set(err, -ENOMEM, "out of memory");
    memset(block, 0, (size_t)layout.total);
    bcq_format(&view, block, spec);
    struct job job = {.src = src, .tensor = t, .view = &view};
    int r = code_matrix(&job, ret, n_threads, err);
    struct safetensors_tensor out = {.name = coded,
                                     .type = SAFETENSORS_U8,
                                     .n_dims = 1,
                                     .shape = {layout.total},
                                     .data = block,
                                     .n_bytes = layout.total};
    if (r == 0) r = checkpoint_writer_add(w, &out, err);
    free(block);
    return r;
}

int output_write(struct output_result *ret, struct checkpoint_writer *w, const struct source *src,
                 const char *name, int bits, int n_threads, struct error *err) {
    char full[NAME_SIZE], coded[NAME_SIZE];
    struct source_tensor t;
    snprintf(full, sizeof full, "%s.weight", name);
    snprintf(coded, sizeof coded, "%s.bcq", name);
    if (source_find(src, full, &t) < 0)
        return error_set(err, -EBADMSG, "tensor '%s' is missing", full);
    struct bcq_spec spec = {
        .kind = BCQ_WHOLE, .rows = (int)t.rows, .cols = (int)t.cols, .bits = bits, .group = GROUP};
    int r = bcq_check(&spec, err);
    struct output_result result = {.rows = (int)t.rows,
                                   .cols = (int)t.cols,
                                   .bits_per_weight = r == 0 ? bcq_bits_per_weight(&spec) : 0};
    if (r == 0 && !checkpoint_writer_has(w, coded))
        r = make(&result, w, src, &t, &spec, coded, n_threads, err);
    if (r < 0) return error_prefix(err, r, "tensor '%s'", full);
    source_release(src, &t);
    *ret = result;
    return 0;
}
