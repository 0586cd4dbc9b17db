#include <stdlib.h>

#include "engine/quant/layer.h"

void layer_result_free(struct layer_result *result) {
    free(result->block);
    free(result->side);
    free(result->turns);
    result->block = result->side = result->turns = NULL;
}

double layer_bits_per_weight(const struct layer_result *result) {
    const struct bcq_spec *s = &result->view.spec;
    double side =
        8.0 * (double)(result->n_side + result->n_turns) / ((double)s->rows * (double)s->cols);
    return bcq_bits_per_weight(s) + side;
}

struct weight_view layer_view(const struct layer_result *result) {
    return (struct weight_view){.is_bcq = 1,
                                .bcq = result->view,
                                .rows = result->view.spec.rows,
                                .cols = result->view.spec.cols,
                                .outliers = result->side ? &result->outliers : NULL,
                                .rotation = result->turns ? &result->rotation : NULL};
}
