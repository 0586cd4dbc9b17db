/* Every allocation of quantizing a matrix fails once. */
#include "engine/quant/layer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "kernels/error.h"
#include "tests/support/alloc_fail.h"
#include "tests/unit/engine/quant/support.h"

enum { ROWS = 72, COLS = 48 };

static int attempt(const float *w, const double *h, const struct layer_options *o, int n,
                   struct error *err) {
    static double damped[COLS * COLS];
    struct layer_input *in = NULL;
    struct layer_result result = {0};
    memcpy(damped, h, sizeof damped);
    alloc_fail_at(n);
    int r = layer_input_new(&in, damped, COLS, o, err);
    if (r == 0) r = layer_quantize(&result, in, w, ROWS, o, err);
    bool hit = alloc_fail_hit();
    alloc_fail_at(0);
    if (r == 0) cr_assert_not(hit, "allocation %d failed unnoticed", n);
    if (r < 0) cr_assert_null(result.block);
    layer_result_free(&result);
    layer_input_free(in);
    return r;
}

Test(layer_memory, quantizing_fails_cleanly_wherever_memory_ends) {
    static float w[ROWS * COLS];
    static double h[COLS * COLS];
    struct layer_options kinds[4];
    support_problem(41, ROWS, COLS, w, h);
    linalg_init();
    for (int i = 0; i < 4; i++) {
        layer_defaults(&kinds[i]);
        kinds[i].n_ranges = 2;
        kinds[i].refine = i == 0;
        kinds[i].explore = i == 0 ? 2 : 0;
        kinds[i].outliers = i == 0 ? 2.0 : 0.0;
        if (i == 3) kinds[i].incoherence = LAYER_TURN_BOTH;
    }
    kinds[1].method = LAYER_GPTQ; /* lays its grids as it goes */
    kinds[1].kind = BCQ_FREE;
    kinds[1].act_order = false;
    kinds[2].method = LAYER_BCQ;
    kinds[2].kind = BCQ_FREE;
    kinds[3].method = LAYER_RTN;
    kinds[3].kind = BCQ_COMPACT_GROUP;
    for (int i = 0; i < 4; i++) {
        int n = 1;
        for (;; n++) {
            struct error err = {""};
            int r = attempt(w, h, &kinds[i], n, &err);
            if (r == 0) break;
            cr_assert_eq(r, -ENOMEM, "kind %d, allocation %d: %d %s", i, n, r, err.text);
            cr_assert_neq(err.text[0], 0);
        }
        cr_assert_gt(n, 20);
    }
}
