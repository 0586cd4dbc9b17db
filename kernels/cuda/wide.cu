/* Products of many tokens with fp16 matrices, and the choice of a launch. */
#include "kernels/cuda/wide.h"

#include "kernels/cuda/halves.cuh"
#include "kernels/cuda/wide.cuh"

cudaError_t wide_halves_run(struct product_set *set, const struct product_plan *plan,
                            cudaStream_t stream) {
    return wide_launch<halves_form>(set, plan, stream);
}

size_t wide_shared(int cols, int stages) {
    size_t stage = sizeof(uint4) * ((size_t)WIDE_PAIRS * (size_t)cols * 4 + WIDE_STAGE_A);
    return (size_t)stages * stage + (size_t)cols / 4 * WARPS * 32 * sizeof(float);
}

int wide_folds(const struct product_kind *kind) { return kind->form == FORM_COMPACT ? 2 : 1; }

size_t wide_floats(const struct product_kind *kind, const struct product_set *set, int splits) {
    size_t rows = 0;
    if (splits == 1) return 0;
    for (int i = 0; i < set->n; i++) rows += (size_t)set->each[i].rows;
    return rows * (size_t)set->x.n_tokens * (size_t)(PARTS * wide_folds(kind));
}

/* Microseconds of a launch on a card like those of SPEED.md: waves of blocks, each with as many
 * stages as it has, then the partial sums' way out and back. */
static double wide_cost(const struct product_kind *kind, const struct product_set *set, int cols,
                        int splits, const struct product_device *device) {
    double stage = cols == 256 ? 0.72 : cols == 128 ? 0.38 : 0.25;
    long blocks = 0;
    for (int i = 0; i < set->n; i++)
        blocks += (tiles_of(set->each[i].rows) + WIDE_TILES - 1) / WIDE_TILES;
    blocks *= (long)((set->x.n_cols + cols - 1) / cols) * splits;
    long waves = (blocks + device->processors - 1) / device->processors;
    double cost = 3 + (double)waves * chunks_of(set->cols) * 2 * stage / splits;
    if (splits > 1) cost += 3 + 8 * (double)wide_floats(kind, set, splits) / 3e6;
    return cost;
}

struct product_plan product_plan_for(const struct product_kind *kind, const struct product_set *set,
                                     const struct product_device *device) {
    static const int widths[] = {64, 128, 256};
    struct product_plan best = {WAY_NARROW, 0, 0, 1, 0, NULL};
    double least = 0;
    if (set->x.n_tokens <= FEW_TOKENS || kind->form == FORM_PLANES || !device->copies) return best;
    for (int w = 0; w < 3; w++) {
        int stages = 4;
        while (stages > 1 && wide_shared(widths[w], stages) > device->shared) stages--;
        if (stages < 2) continue;
        for (int splits = 1; splits <= PARTS; splits *= 2) {
            double cost = wide_cost(kind, set, widths[w], splits, device);
            if (best.way == WAY_WIDE && cost >= least) continue;
            least = cost;
            best = product_plan{WAY_WIDE, widths[w], stages, splits, wide_floats(kind, set, splits),
                                NULL};
        }
    }
    return best;
}
