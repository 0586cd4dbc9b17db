#include "engine/quant/rescale.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/layer.h"
#include "engine/quant/linalg.h"
#include "engine/quant/params.h"
#include "engine/quant/strip.h"
#include "kernels/float16.h"
#include "tests/unit/engine/quant/support.h"

enum { ROWS = 30, COLS = 96 };

struct rig {
    float *w, *h32;
    double *h;
    int *group_of;
    struct layer_result result;
    struct gptq_factor *factor;
    struct strip_problem problem;
    struct strip *strip;
};

/* A layer as the quantizer makes it, and its strip. */
static void rig_open(struct rig *g, enum bcq_kind kind) {
    struct layer_options o;
    struct layer_input *in;
    linalg_init();
    *g = (struct rig){.w = malloc(ROWS * COLS * sizeof *g->w),
                      .h32 = malloc(COLS * COLS * sizeof *g->h32),
                      .h = malloc(COLS * COLS * sizeof *g->h),
                      .group_of = malloc(COLS * sizeof *g->group_of)};
    support_problem(31, ROWS, COLS, g->w, g->h);
    layer_defaults(&o);
    o.kind = kind;
    o.n_ranges = 4;
    double *h = malloc(COLS * COLS * sizeof *h);
    cr_assert(g->w && g->h32 && g->h && g->group_of && h);
    memcpy(h, g->h, COLS * COLS * sizeof *h);
    cr_assert_eq(layer_input_new(&in, h, COLS, &o, NULL), 0);
    cr_assert_eq(layer_quantize(&g->result, in, g->w, ROWS, &o, NULL), 0);
    layer_input_free(in);
    free(h);
    struct gptq_options options = {.damp = o.damp, .act_order = true, .n_threads = 1};
    cr_assert_eq(gptq_factor_new(&g->factor, g->h, COLS, &options, NULL), 0);
    for (int i = 0; i < COLS; i++) {
        g->group_of[i] = g->factor->perm[i] / o.group;
        for (int j = 0; j < COLS; j++)
            g->h32[i * COLS + j] = (float)g->h[g->factor->perm[i] * COLS + g->factor->perm[j]];
    }
    g->problem = (struct strip_problem){
        .factor = g->factor, .h = g->h32, .group_of = g->group_of, .view = g->result.view};
    cr_assert_eq(strip_new(&g->strip, &g->problem, NULL), 0);
    strip_load(g->strip, g->w, 0, ROWS);
    strip_levels(g->strip);
    strip_loop(g->strip);
    strip_codes(g->strip);
}

static void rig_close(struct rig *g) {
    strip_free(g->strip);
    gptq_factor_free(g->factor);
    layer_result_free(&g->result);
    free(g->w);
    free(g->h32);
    free(g->h);
    free(g->group_of);
}

static uint16_t *supers(const struct rig *g) {
    return (uint16_t *)(uintptr_t)g->result.view.row_scale;
}

Test(rescale, no_neighbour_of_the_chosen_scales_is_better) {
    struct rig g;
    double before[GPTQ_LANES], after[GPTQ_LANES], other[GPTQ_LANES];
    rig_open(&g, BCQ_COMPACT);
    uint16_t *super = supers(&g);
    /* Scales that are far off: the fit has to find the way back. */
    for (int r = 0; r < ROWS; r++) {
        super[2 * r] = f32_to_f16(1.2f * f16_to_f32(super[2 * r]));
        super[2 * r + 1] = f32_to_f16(0.7f * f16_to_f32(super[2 * r + 1]));
    }
    strip_from_codes(g.strip);
    strip_loss(g.strip, before);
    cr_assert_eq(rescale_strip(g.strip, NULL), 0);
    strip_loss(g.strip, after);
    for (int r = 0; r < ROWS; r++) cr_assert(after[r] < before[r], "row %d", r);
    for (int move = 0; move < 8; move++) {
        /* Steps of 1 %: beyond what fp16 rounds away. */
        float x = 1.0f + 0.01f * (float)(move % 3 - 1), y = 1.0f + 0.01f * (float)(move / 3 - 1);
        uint16_t saved[2 * ROWS];
        memcpy(saved, super, sizeof saved);
        for (int r = 0; r < ROWS; r++) {
            super[2 * r] = f32_to_f16(x * f16_to_f32(super[2 * r]));
            super[2 * r + 1] = f32_to_f16(y * f16_to_f32(super[2 * r + 1]));
        }
        strip_from_codes(g.strip);
        strip_loss(g.strip, other);
        for (int r = 0; r < ROWS; r++)
            cr_assert(other[r] >= after[r] * 0.9999, "row %d, move %d: %g below %g", r, move,
                      other[r], after[r]);
        memcpy(super, saved, sizeof saved);
    }
    rig_close(&g);
}

Test(rescale, a_free_block_stays) {
    struct rig g;
    rig_open(&g, BCQ_FREE);
    void *copy = malloc(g.result.n_bytes);
    cr_assert(copy);
    memcpy(copy, g.result.block, g.result.n_bytes);
    cr_assert_eq(rescale_strip(g.strip, NULL), 0);
    cr_assert_eq(memcmp(copy, g.result.block, g.result.n_bytes), 0);
    free(copy);
    rig_close(&g);
}

Test(params, a_row_comes_back_and_no_other_row_moves) {
    for (int kind = BCQ_COMPACT; kind <= BCQ_FREE; kind++) {
        struct rig g, other;
        rig_open(&g, (enum bcq_kind)kind);
        rig_open(&other, (enum bcq_kind)kind);
        const struct bcq_view *v = &g.result.view;
        size_t size = params_size(v);
        uint8_t *copy = malloc(size), *zero = calloc(1, size);
        cr_assert(copy && zero);
        params_save(v, 7, copy);
        params_restore(v, 7, zero);
        cr_assert_neq(memcmp(g.result.block, other.result.block, g.result.n_bytes), 0);
        params_restore(v, 7, copy);
        cr_assert_eq(memcmp(g.result.block, other.result.block, g.result.n_bytes), 0);
        free(copy);
        free(zero);
        rig_close(&g);
        rig_close(&other);
    }
}
