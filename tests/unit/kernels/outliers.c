#include "kernels/outliers.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "kernels/float16.h"
#include "kernels/weights.h"

/* Row 0: columns 1 and 4; row 1: none; row 2: column 0. */
static void *small(struct outliers_view *v, int cols) {
    size_t n = outliers_bytes(3, cols, 3);
    void *block = aligned_alloc(OUTLIERS_ALIGN, n);
    cr_assert(block);
    memset(block, 0, n);
    outliers_format(v, block, 3, cols, 3);
    uint16_t *counts = (uint16_t *)(uintptr_t)v->counts;
    uint16_t *values = (uint16_t *)(uintptr_t)v->values;
    static const uint32_t columns[] = {1, 4, 0};
    static const float numbers[] = {2.0f, -0.5f, 8.0f};
    counts[0] = 2;
    counts[2] = 1;
    for (uint32_t e = 0; e < 3; e++) {
        outliers_put_column(v, e, columns[e]);
        values[e] = f32_to_f16(numbers[e]);
    }
    return block;
}

Test(outliers, a_row_gets_its_entries_added) {
    static const int widths[] = {5, 70000}; /* columns of two and of four bytes */
    for (int i = 0; i < 2; i++) {
        struct outliers_view v, parsed;
        struct error err;
        void *block = small(&v, widths[i]);
        cr_assert_eq(outliers_parse(&parsed, block, v.total, &err), 0, "%s", err.text);
        cr_assert_eq(parsed.n, 3);
        const float want[3][5] = {{1, 3, 1, 1, 0.5f}, {1, 1, 1, 1, 1}, {9, 1, 1, 1, 1}};
        float *row = malloc((size_t)widths[i] * sizeof *row);
        cr_assert(row);
        for (int r = 0; r < 3; r++) {
            for (int k = 0; k < widths[i]; k++) row[k] = 1;
            outliers_add_row(&parsed, r, row);
            for (int k = 0; k < 5; k++) cr_expect_eq(row[k], want[r][k], "%d, %d", r, k);
        }
        free(row);
        free(block);
    }
}

Test(outliers, whole_columns_are_added_and_checked) {
    struct outliers_view v, parsed;
    struct error err = {""};
    size_t n = outliers_whole_bytes(3, 40, 2);
    char *block = aligned_alloc(OUTLIERS_ALIGN, n);
    cr_assert(block);
    memset(block, 0, n);
    outliers_format_whole(&v, block, 3, 40, 2);
    outliers_put_column(&v, 0, 5);
    outliers_put_column(&v, 1, 39);
    for (int i = 0; i < 6; i++) ((uint16_t *)(uintptr_t)v.values)[i] = f32_to_f16((float)i);
    cr_assert_eq(outliers_parse(&parsed, block, n, &err), 0, "%s", err.text);
    for (int r = 0; r < 3; r++) {
        float row[40] = {0};
        outliers_add_row(&parsed, r, row);
        for (int k = 0; k < 40; k++)
            cr_expect_eq(row[k], k == 5 ? (float)(2 * r) : k == 39 ? (float)(2 * r + 1) : 0.0f);
    }
    outliers_put_column(&v, 1, 40);
    cr_expect_eq(outliers_parse(&parsed, block, n, &err), -EBADMSG);
    outliers_put_column(&v, 1, 5);
    cr_expect_eq(outliers_parse(&parsed, block, n, &err), -EBADMSG);
    outliers_put_column(&v, 1, 6);
    ((uint16_t *)(uintptr_t)v.values)[5] = 0xfc00;
    cr_expect_eq(outliers_parse(&parsed, block, n, &err), -EBADMSG);
    cr_expect(strstr(err.text, "not finite"), "%s", err.text);
    free(block);
}

static void refused(const void *block, size_t n, const char *why) {
    struct outliers_view v;
    struct error err = {""};
    cr_expect_eq(outliers_parse(&v, block, n, &err), -EBADMSG, "%s", why);
    cr_expect(strstr(err.text, why), "'%s' does not say '%s'", err.text, why);
}

/* Sets bytes at a place of the block, expects the refusal, and puts them back. */
static void refused_with(void *block, size_t n, size_t at, uint32_t value, size_t size,
                         const char *why) {
    uint8_t kept[4];
    memcpy(kept, (char *)block + at, size);
    memcpy((char *)block + at, &value, size);
    refused(block, n, why);
    memcpy((char *)block + at, kept, size);
}

Test(outliers, malformed_blocks_are_refused) {
    struct outliers_view v;
    char *block = small(&v, 5);
    size_t counts = (size_t)((const char *)v.counts - block);
    size_t columns = (size_t)((const char *)v.columns - block);
    size_t values = (size_t)((const char *)v.values - block);
    refused(block, 63, "shorter than a header");
    refused(block, v.total - 64, "not as long");
    refused_with(block, v.total, 0, 'X', 1, "magic");
    refused_with(block, v.total, 8, 3, 4, "kind 3");
    refused_with(block, v.total, 8, 2, 4, "contradicts");
    refused_with(block, v.total, 12, 0, 4, "out of range");
    refused_with(block, v.total, 12, 0x80000000u, 4, "out of range");
    refused_with(block, v.total, 16, BCQ_MAX_DIM + 1, 4, "out of range");
    refused_with(block, v.total, 20, 4, 4, "contradicts");
    refused_with(block, v.total, 20, 0xffffffffu, 4, "contradicts");
    refused_with(block, v.total, 32, 128, 4, "contradicts");
    refused_with(block, v.total, 60, 1, 4, "contradicts"); /* reserved */
    refused_with(block, v.total, counts, 3, 2, "count 4 entries");
    refused_with(block, v.total, columns, 4, 2, "do not rise");
    refused_with(block, v.total, columns + 2, 5, 2, "column 5 of 5");
    refused_with(block, v.total, values + 4, 0x7c00, 2, "not finite");
    struct error err = {""};
    cr_expect_eq(outliers_parse(&v, block, v.total, &err), 0, "%s", err.text);
    free(block);
}
