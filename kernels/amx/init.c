#include "kernels/ops.h"

#include "kernels/amx/amx.h"

/* Many tokens of the compact form and of whole numbers; everything else stays with AVX-512. */
void ops_init_amx(struct ops *ops) {
    ops->level = "amx";
    amx_bcq_init(&ops->bcq);
    amx_whole_init(&ops->whole);
}
