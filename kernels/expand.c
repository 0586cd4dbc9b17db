#include "kernels/expand.h"

#include "kernels/outliers.h"
#include "kernels/weights.h"

void weight_expand_row(const struct weight_view *w, int row, float *out) {
    bcq_expand_row(&w->bcq, row, out);
    if (w->outliers) outliers_add_row(w->outliers, row, out);
}
