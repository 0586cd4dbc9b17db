/* Parts of a matrix, put together again, are the matrix: every kind, rows and inputs. */
#include "kernels/cut.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"
#include "tests/support/matrix.h"

enum { ROWS = 10, COLS = 384 };

static const struct bcq_spec specs[] = {
    {BCQ_COMPACT, ROWS, COLS, 3, 16, 4, 5, 0},       {BCQ_COMPACT, ROWS, COLS, 2, 32, 3, 7, 0},
    {BCQ_COMPACT_GROUP, ROWS, COLS, 2, 32, 6, 6, 5}, {BCQ_FREE, ROWS, COLS, 4, 32, 0, 0, 0},
    {BCQ_FREE, ROWS, COLS, 3, COLS, 0, 0, 0},        {BCQ_COMPACT, ROWS, COLS, 3, COLS, 4, 5, 0},
    {BCQ_WHOLE, ROWS, COLS, 8, 32, 0, 0, 0}};
enum { N_SPECS = sizeof specs / sizeof *specs };

static struct weight_view coded(const struct bcq_view *v) {
    return (struct weight_view){
        .is_bcq = 1, .bcq = *v, .rows = v->spec.rows, .cols = v->spec.cols, .act_bits = 8};
}

/* The part's rows against the view's, from the row and input where it begins. */
static void check_part(const struct cut *cut, const struct weight_view *whole, int row, int col,
                       const char *what, int which) {
    float want[COLS], got[COLS];
    const struct weight_view *v = &cut->view;
    if (v->is_bcq) {
        cr_assert_eq(bcq_check(&v->bcq.spec, NULL), 0);
        cr_assert_eq(bcq_check_values(&v->bcq, NULL), 0);
        cr_assert(v->bcq.spec.rows == v->rows && v->bcq.spec.cols == v->cols);
    }
    cr_assert_eq(v->act_bits, whole->act_bits);
    for (int r = 0; r < v->rows; r++) {
        matrix_row(whole, row + r, want);
        matrix_row(v, r, got);
        cr_assert_eq(memcmp(got, want + col, (size_t)v->cols * sizeof *got), 0,
                     "%s, kind %d: row %d of the part at %d, %d", what, which, r, row, col);
    }
}

static void check_cuts(const struct weight_view *whole, int which) {
    for (int n = 1; n <= 4; n++) {
        int rows = 0;
        for (int i = 0; i < n; i++) {
            struct cut cut;
            struct error err;
            cr_assert_eq(cut_rows(&cut, whole, i, n, &err), 0, "%s", err.text);
            cr_assert_eq(rows, cut_begin(ROWS, i, n));
            check_part(&cut, whole, rows, 0, "rows", which);
            rows += cut.view.rows;
            cut_free(&cut);
            cr_assert_eq(cut_inputs(&cut, whole, i, n, &err), 0, "%s", err.text);
            cr_assert_eq(cut.view.cols, COLS / n);
            check_part(&cut, whole, 0, i * cut.view.cols, "inputs", which);
            cut_free(&cut);
        }
        cr_assert_eq(rows, ROWS);
    }
}

Test(cut, parts_of_coded_matrices_have_their_weights) {
    for (int i = 0; i < N_SPECS; i++) {
        struct bcq_view made;
        void *block = matrix_bcq(&made, &specs[i], (uint64_t)i + 1);
        struct weight_view whole = coded(&made);
        check_cuts(&whole, i);
        free(block);
    }
}

Test(cut, parts_of_dense_matrices_have_their_weights) {
    const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (int i = 0; i < 3; i++) {
        struct weight_view whole;
        void *data = matrix_dense(&whole, types[i], ROWS, COLS, 3);
        check_cuts(&whole, i);
        free(data);
    }
}

static void check_refused(const struct bcq_spec *spec, int n, const char *says) {
    struct bcq_view made;
    struct cut cut;
    struct error err;
    void *block = matrix_bcq(&made, spec, 1);
    struct weight_view whole = coded(&made);
    cr_expect_eq(cut_inputs(&cut, &whole, 0, n, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, says), "%s", err.text);
    cut_free(&cut);
    free(block);
}

Test(cut, inputs_are_cut_between_words_and_groups_alone) {
    const struct bcq_spec words = {BCQ_COMPACT, 4, 96, 3, 16, 4, 5, 0};
    const struct bcq_spec groups = {BCQ_FREE, 4, 192, 3, 64, 0, 0, 0};
    check_refused(&words, 2, "96 inputs in 2 parts: codes are cut at multiples of 32");
    check_refused(&groups, 2, "192 inputs in 2 parts: groups of 64 would be cut");
    check_refused(&groups, 5, "192 inputs do not divide by 5");
}
