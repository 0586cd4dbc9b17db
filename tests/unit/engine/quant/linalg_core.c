/* Run with OPENBLAS_CORETYPE=Prescott. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/quant/linalg.h"
#include "kernels/cpu/features.h"

Test(linalg_core, sse_kernels_are_not_taken_on_a_wider_processor) {
    const char *core = linalg_better_core();
    unsigned have = features_detect();
    if (!(have & FEATURE_AVX2)) {
        cr_assert_null(core);
        return;
    }
    cr_assert_not_null(core);
    /* Our AVX-512 asks for more than OpenBLAS does. */
    cr_assert(!strcmp(core, "SkylakeX") || (!(have & FEATURE_AVX512) && !strcmp(core, "Haswell")));
}
