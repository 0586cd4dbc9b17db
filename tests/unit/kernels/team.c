/* Several emulated GPUs as one: the operations of a block, split over them, against those of a single
 * one; the same bits every time; what does not divide, and what fails on one of them or on the only one. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/error.h"
#include "tests/support/beside.h"
#include "tests/support/matrix.h"

enum {
    HIDDEN = 96,
    HEADS = 24,
    KV_HEADS = 12,
    DIM = 16,
    Q = HEADS * DIM,
    KV = KV_HEADS * DIM,
    WIDE = 384,
    VOCAB = 101, /* does not divide */
    TOKENS = 5,
    ROWS = 2
};

/* What matrices are made of. */
enum make { MAKE_F32, MAKE_F16, MAKE_COMPACT, MAKE_FREE, N_MAKES };

struct block {
    struct backend *be;
    struct weight *norm, *norm_bias, *q, *k, *v, *o, *gate, *up, *down, *head, *table;
    struct weight *q_bias, *o_bias;
    struct buffer *x, *h, *bq, *bk, *bv, *a, *bgate, *bup, *rows, *logits;
    struct kv *kv;
};

static struct backend *open_devices(int n, struct error *err) {
    struct backend_options options = {.name = "cuda-emu", .n_devices = n};
    struct backend *be = NULL;
    int r = backend_open(&be, &options, err);
    if (r < 0) cr_assert_null(be);
    return be;
}

static struct weight *matrix(struct backend *be, enum make make, enum weight_split split, int rows,
                             int cols, uint64_t seed) {
    const struct bcq_spec specs[] = {[MAKE_COMPACT] = {BCQ_COMPACT, rows, cols, 3, 16, 4, 5, 0},
                                     [MAKE_FREE] = {BCQ_FREE, rows, cols, 2, 32, 0, 0, 0}};
    struct weight_view view = {0};
    struct weight *w = NULL;
    struct error err;
    void *data;
    if (make >= MAKE_COMPACT) {
        data = matrix_bcq(&view.bcq, &specs[make], seed);
        view.is_bcq = 1;
        view.rows = rows;
        view.cols = cols;
    } else {
        data = matrix_dense(&view, make == MAKE_F16 ? DTYPE_F16 : DTYPE_F32, rows, cols, seed);
    }
    view.split = split;
    cr_assert_eq(backend_weight_new(be, &w, WEIGHT_LINEAR, &view, &err), 0, "%s", err.text);
    free(data);
    return w;
}

static struct weight *vector(struct backend *be, enum weight_use use, enum weight_split split,
                             int rows, int cols, uint64_t seed) {
    struct weight_view view;
    struct weight *w = NULL;
    struct error err;
    void *data = matrix_dense(&view, DTYPE_F32, rows, cols, seed);
    view.split = split;
    cr_assert_eq(backend_weight_new(be, &w, use, &view, &err), 0, "%s", err.text);
    free(data);
    return w;
}

static void make_weights(struct block *b, enum make make) {
    struct backend *be = b->be;
    b->table = vector(be, WEIGHT_TABLE, SPLIT_NONE, VOCAB, HIDDEN, 1);
    b->norm = vector(be, WEIGHT_VECTOR, SPLIT_NONE, 1, HIDDEN, 2);
    b->norm_bias = vector(be, WEIGHT_VECTOR, SPLIT_NONE, 1, HIDDEN, 3);
    b->q = matrix(be, make, SPLIT_ROWS, Q, HIDDEN, 4);
    b->k = matrix(be, make, SPLIT_ROWS, KV, HIDDEN, 5);
    b->v = matrix(be, make, SPLIT_ROWS, KV, HIDDEN, 6);
    b->o = matrix(be, make, SPLIT_INPUTS, HIDDEN, Q, 7);
    b->q_bias = vector(be, WEIGHT_VECTOR, SPLIT_ROWS, 1, Q, 8);
    b->o_bias = vector(be, WEIGHT_VECTOR, SPLIT_INPUTS, 1, HIDDEN, 9);
    b->gate = matrix(be, make, SPLIT_ROWS, WIDE, HIDDEN, 10);
    b->up = matrix(be, make, SPLIT_ROWS, WIDE, HIDDEN, 11);
    b->down = matrix(be, make, SPLIT_INPUTS, HIDDEN, WIDE, 12);
    b->head = matrix(be, make, SPLIT_ROWS, VOCAB, HIDDEN, 13);
}

static void make_buffers(struct block *b) {
    const struct {
        struct buffer **buffer;
        int width;
    } want[] = {{&b->x, HIDDEN},    {&b->h, HIDDEN},    {&b->bq, Q},       {&b->bk, KV},
                {&b->bv, KV},       {&b->a, Q},         {&b->bgate, WIDE}, {&b->bup, WIDE},
                {&b->rows, HIDDEN}, {&b->logits, VOCAB}};
    struct error err;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        cr_assert_eq(
            backend_buffer_new(b->be, want[i].buffer, (size_t)TOKENS * (size_t)want[i].width, &err),
            0, "%s", err.text);
    const struct kv_spec spec = {1, KV_HEADS, DIM, 2, DTYPE_F32};
    cr_assert_eq(backend_kv_new(b->be, &b->kv, &spec, &err), 0, "%s", err.text);
}

static void open_block(struct block *b, int n_devices, enum make make) {
    struct error err = {.text = ""};
    *b = (struct block){.be = open_devices(n_devices, &err)};
    cr_assert_not_null(b->be, "%s", err.text);
    make_weights(b, make);
    make_buffers(b);
}

static void close_block(struct block *b) {
    struct weight *weights[] = {b->norm,  b->norm_bias, b->q,     b->k,    b->v,
                                b->o,     b->gate,      b->up,    b->down, b->head,
                                b->table, b->q_bias,    b->o_bias};
    struct buffer *buffers[] = {b->x, b->h,     b->bq,  b->bk,   b->bv,
                                b->a, b->bgate, b->bup, b->rows, b->logits};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        backend_weight_free(b->be, weights[i]);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        backend_buffer_free(b->be, buffers[i]);
    backend_kv_free(b->be, b->kv);
    backend_close(b->be);
}

static void attend(struct block *b, const float *slopes) {
    static const double freq[DIM / 2] = {1, 0.5, 0.25, 0.1};
    struct linear_call qkv[] = {{.dst = b->bq, .w = b->q, .bias = b->q_bias},
                                {.dst = b->bk, .w = b->k},
                                {.dst = b->bv, .w = b->v}};
    struct linear_call o = {.dst = b->x, .w = b->o, .bias = b->o_bias, .accumulate = true};
    struct rope_call rope = {b->bq, HEADS, DIM, freq, DIM / 2, 1};
    struct attention_call call = {
        .dst = b->a, .q = b->bq, .kv = b->kv, .n_heads = HEADS, .scale = 0.125F, .slopes = slopes};
    backend_linear(b->be, qkv, 3, b->h);
    if (!slopes) {
        backend_rope(b->be, &rope);
        rope.x = b->bk;
        rope.n_heads = KV_HEADS;
        backend_rope(b->be, &rope);
    }
    backend_kv_store(b->be, b->kv, 0, b->bk, b->bv);
    backend_attention(b->be, &call);
    backend_linear(b->be, &o, 1, b->a);
}

static void feed(struct block *b) {
    struct linear_call wide[] = {{.dst = b->bgate, .w = b->gate}, {.dst = b->bup, .w = b->up}};
    struct linear_call down = {.dst = b->x, .w = b->down, .accumulate = true};
    backend_linear(b->be, wide, 2, b->h);
    backend_gate(b->be, b->bgate, b->bup, WIDE);
    backend_linear(b->be, &down, 1, b->bgate);
}

/* Tokens first to first + n - 1 of one sequence; the last rows' logits are left in the block. */
static void step(struct block *b, int first, int n, const float *slopes) {
    static const int32_t tokens[TOKENS] = {3, 100, 7, 7, 50}, seqs[TOKENS] = {0}, blocks[] = {1, 0};
    int32_t positions[TOKENS], rows[ROWS];
    struct norm_call norm = {b->norm, b->norm_bias, HIDDEN, 1e-5F};
    struct linear_call head = {.dst = b->logits, .w = b->head};
    for (int i = 0; i < n; i++) positions[i] = first + i;
    int n_rows = n < ROWS ? n : ROWS;
    for (int i = 0; i < n_rows; i++) rows[i] = n - n_rows + i;
    struct batch batch = {n, 1, tokens + first, positions, seqs, blocks, 2};
    backend_begin(b->be, &batch);
    backend_embed(b->be, b->x, b->table, false, 0, 10, false);
    backend_norm(b->be, b->h, b->x, &norm);
    attend(b, slopes);
    backend_norm(b->be, b->h, b->x, &norm);
    feed(b);
    backend_gather(b->be, b->rows, b->x, rows, n_rows, HIDDEN);
    backend_norm(b->be, b->rows, b->rows, &norm);
    backend_linear(b->be, &head, 1, b->rows);
}

static void read_logits(struct block *b, float *logits, int n_rows) {
    struct error err;
    cr_assert_eq(
        backend_buffer_read(b->be, logits, b->logits, 0, (size_t)n_rows * (size_t)VOCAB, &err), 0,
        "%s", err.text);
}

static double distance(const float *a, const float *b, int n) {
    double d = 0, all = 0;
    for (int i = 0; i < n; i++) {
        d += pow((double)a[i] - (double)b[i], 2);
        all += pow((double)b[i], 2);
    }
    return sqrt(d / all);
}

/* Rows in short are those of all devices' columns. */
static void check_top(struct block *b, const int32_t *ids) {
    static const float heats[ROWS] = {1, 1};
    static uint64_t ranks[ROWS * BACKEND_TOP], sums[ROWS];
    struct error err;
    struct top_call call = {b->logits, ROWS, VOCAB, heats, ranks, sums};
    cr_assert_eq(backend_top(b->be, &call, &err), 0, "%s", err.text);
    for (int r = 0; r < ROWS; r++) {
        cr_expect_eq((int32_t) ~(uint32_t)ranks[r * BACKEND_TOP], ids[r]);
        cr_expect(ranks[r * BACKEND_TOP + VOCAB - 1] && !ranks[r * BACKEND_TOP + VOCAB]);
        cr_expect_gt(sums[r], 0);
    }
}

static void check_block(int n_devices, enum make make, const float *slopes) {
    struct block one, many;
    float want[ROWS * VOCAB], got[ROWS * VOCAB], again[VOCAB], columns[2 * Q], own[2 * Q];
    int32_t want_ids[ROWS], ids[ROWS];
    struct error err;
    open_block(&one, 1, make);
    step(&one, 0, TOKENS, slopes);
    cr_assert_eq(backend_best(one.be, want_ids, one.logits, ROWS, VOCAB, &err), 0);
    read_logits(&one, want, ROWS);
    cr_assert_eq(backend_buffer_read(one.be, own, one.a, Q / 2, 2 * (size_t)Q, &err), 0);
    close_block(&one); /* each has the process's current device to itself */
    open_block(&many, n_devices, make);
    step(&many, 0, TOKENS, slopes);
    cr_assert_eq(backend_best(many.be, ids, many.logits, ROWS, VOCAB, &err), 0, "%s", err.text);
    read_logits(&many, got, ROWS);
    double d = distance(got, want, ROWS * VOCAB);
    cr_expect(d < 1e-3, "%d devices, made of %d: %g", n_devices, (int)make, d);
    cr_expect_arr_eq(ids, want_ids, sizeof ids, "%d devices, made of %d", n_devices, (int)make);
    check_top(&many, ids);
    /* Columns of all devices in the order of one. */
    cr_assert_eq(backend_buffer_read(many.be, columns, many.a, Q / 2, 2 * (size_t)Q, &err), 0);
    cr_expect(distance(columns, own, 2 * Q) < 1e-3);
    /* A token alone, after the others, has the bits that it had among them. */
    step(&many, 0, TOKENS - 1, slopes);
    step(&many, TOKENS - 1, 1, slopes);
    read_logits(&many, again, 1);
    cr_expect_eq(memcmp(again, got + VOCAB, sizeof again), 0, "%d devices, made of %d", n_devices,
                 (int)make);
    close_block(&many);
}

static void have_devices(const char *n) { setenv("GPTQT_EMU_DEVICES", n, 1); }

Test(team, a_block_over_devices_is_that_of_one) {
    have_devices("4");
    for (int make = 0; make < N_MAKES; make++) check_block(2, (enum make)make, NULL);
    check_block(3, MAKE_F16, NULL);
    check_block(4, MAKE_COMPACT, NULL);
}

Test(team, slopes_go_with_their_heads) {
    float slopes[HEADS];
    for (int i = 0; i < HEADS; i++) slopes[i] = 0.5F / (float)(i + 1);
    have_devices("3");
    check_block(3, MAKE_F32, slopes);
}

Test(team, memory_is_shared_out) {
    struct block one, two;
    struct backend_memory m1, m2;
    have_devices("2");
    open_block(&one, 1, MAKE_COMPACT);
    cr_assert(backend_get_memory(one.be, &m1));
    close_block(&one);
    open_block(&two, 2, MAKE_COMPACT);
    cr_assert(backend_get_memory(two.be, &m2));
    cr_expect_eq(m2.total, 2 * m1.total);
    cr_expect_eq(m2.kv, m1.kv);
    cr_expect_eq(backend_weight_bytes(two.be, two.table), 2 * (size_t)VOCAB * HIDDEN * 4);
    cr_expect(m2.weights < m1.weights + m1.weights / 4, "%zu, alone %zu", m2.weights, m1.weights);
    close_block(&two);
}

/* Rooms of the largest step are there after its rehearsal, and nothing was computed. */
Test(team, a_rehearsed_step_asks_for_no_more_memory) {
    struct block b;
    struct backend_memory before, after;
    struct error err;
    int32_t ids[ROWS];
    have_devices("2");
    open_block(&b, 2, MAKE_FREE);
    backend_rehearse(b.be, true);
    step(&b, 0, TOKENS, NULL);
    cr_assert_eq(backend_best(b.be, ids, b.logits, ROWS, VOCAB, &err), 0, "%s", err.text);
    backend_rehearse(b.be, false);
    cr_assert(backend_get_memory(b.be, &before));
    step(&b, 0, TOKENS, NULL);
    cr_assert_eq(backend_best(b.be, ids, b.logits, ROWS, VOCAB, &err), 0, "%s", err.text);
    cr_assert(backend_get_memory(b.be, &after));
    cr_expect_eq(after.work, before.work);
    cr_expect(ids[0] >= 0 && ids[0] < VOCAB);
    close_block(&b);
}

static void check_weight_refused(struct backend *be, enum weight_split split,
                                 const struct bcq_spec *spec, const char *says) {
    struct weight_view view = {.is_bcq = 1, .rows = spec->rows, .cols = spec->cols, .split = split};
    struct weight *w = NULL;
    struct error err;
    void *block = matrix_bcq(&view.bcq, spec, 1);
    cr_expect_eq(backend_weight_new(be, &w, WEIGHT_LINEAR, &view, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, says), "%s", err.text);
    free(block);
}

Test(team, what_does_not_divide_is_refused) {
    const struct bcq_spec words = {BCQ_COMPACT, 32, 96, 3, 16, 4, 5, 0};
    const struct bcq_spec groups = {BCQ_FREE, 32, 192, 3, 64, 0, 0, 0};
    const struct kv_spec heads = {1, 3, DIM, 1, DTYPE_F32};
    struct block b;
    struct kv *kv = NULL;
    struct error err;
    have_devices("2");
    open_block(&b, 2, MAKE_F32);
    check_weight_refused(b.be, SPLIT_INPUTS, &words, "multiples of 32");
    check_weight_refused(b.be, SPLIT_INPUTS, &groups, "groups of 64 would be cut");
    cr_expect_eq(backend_kv_new(b.be, &kv, &heads, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "3 heads"), "%s", err.text);
    step(&b, 0, 2, NULL);
    struct attention_call odd = {
        .dst = b.a, .q = b.bq, .kv = b.kv, .n_heads = HEADS - 1, .scale = 1};
    backend_attention(b.be, &odd);
    cr_expect_eq(backend_sync(b.be, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "23 over 2 devices"), "%s", err.text);
    close_block(&b);
}

/* What lies beside codes is not cut; a matrix that every device has whole may have it. */
static void check_beside_refused(struct backend *be, const struct outliers_view *outliers,
                                 const struct rotation_view *rotation, const char *says) {
    const struct bcq_spec spec = {BCQ_COMPACT, 64, 64, 3, 16, 4, 5, 0};
    struct weight_view view = {.is_bcq = 1,
                               .rows = 64,
                               .cols = 64,
                               .split = SPLIT_ROWS,
                               .outliers = outliers,
                               .rotation = rotation};
    struct weight *w = NULL;
    struct error err;
    void *block = matrix_bcq(&view.bcq, &spec, 1);
    cr_expect_eq(backend_weight_new(be, &w, WEIGHT_LINEAR, &view, &err), -ENOTSUP);
    cr_expect_not_null(strstr(err.text, says), "%s", err.text);
    view.split = SPLIT_NONE;
    cr_expect_eq(backend_weight_new(be, &w, WEIGHT_LINEAR, &view, &err), 0, "%s", err.text);
    backend_weight_free(be, w);
    free(block);
}

Test(team, outliers_and_rotations_are_refused) {
    struct outliers_view outliers;
    struct rotation_view rotation;
    struct error err;
    void *a = beside_outliers(&outliers, 64, 64, 1);
    void *b = beside_rotation(&rotation, 64, 64, true, 1);
    have_devices("2");
    struct backend *be = open_devices(2, &err);
    cr_assert(be, "%s", err.text);
    check_beside_refused(be, &outliers, NULL, "outliers are not split over devices");
    check_beside_refused(be, NULL, &rotation, "rotations are not split over devices");
    backend_close(be);
    free(a);
    free(b);
}

Test(team, there_must_be_as_many_devices) {
    struct error err;
    struct backend *be = NULL;
    struct backend_options cpu = {.name = "cpu", .n_devices = 2};
    have_devices("2");
    cr_expect_null(open_devices(3, &err));
    cr_expect_not_null(strstr(err.text, "3 devices are asked for, 2 are there"), "%s", err.text);
    cr_expect_null(open_devices(9, &err));
    cr_expect_not_null(strstr(err.text, "at most 8"), "%s", err.text);
    have_devices("0");
    cr_expect_null(open_devices(2, &err));
    cr_expect_not_null(strstr(err.text, "no GPU"), "%s", err.text);
    cr_expect_eq(backend_open(&be, &cpu, &err), -EINVAL);
    cr_expect_not_null(strstr(err.text, "the CPU back end has one"), "%s", err.text);
}

/* Every third launch of a step fails on the second device, each in turn: never in silence. */
Test(team, a_failing_launch_of_the_second_device_is_reported) {
    have_devices("2");
    for (int n = 1; n < 200; n += 3) {
        struct block b;
        struct error err = {.text = ""};
        char text[16];
        float logits[VOCAB];
        snprintf(text, sizeof text, "%d", n);
        setenv("GPTQT_EMU_FAIL_DEVICE", "1", 1);
        unsetenv("GPTQT_EMU_FAIL_LAUNCH");
        open_block(&b, 2, MAKE_F32);
        setenv("GPTQT_EMU_FAIL_LAUNCH", text, 1);
        step(&b, 0, 1, NULL);
        int r = backend_buffer_read(b.be, logits, b.logits, 0, VOCAB, &err);
        unsetenv("GPTQT_EMU_FAIL_LAUNCH");
        close_block(&b);
        if (r == 0) cr_assert_gt(n, 10, "launch %d", n);
        if (r == 0) break;
        cr_assert_eq(r, -EIO, "launch %d: %s", n, err.text);
        cr_assert_not_null(strstr(err.text, "device 1: "), "%s", err.text);
    }
}

/* The last of n devices is lost at the `turn`th copy or wait of a step; false: the step has fewer. */
static bool lose_in_step(const char *variable, int n, int turn) {
    struct block b;
    struct error err = {.text = ""}, again = {.text = ""};
    char text[16], device[16];
    float logits[VOCAB];
    snprintf(text, sizeof text, "%d", turn);
    snprintf(device, sizeof device, "%d", n - 1);
    setenv("GPTQT_EMU_FAIL_DEVICE", device, 1);
    open_block(&b, n, MAKE_COMPACT);
    setenv(variable, text, 1);
    step(&b, 0, 1, NULL);
    int r = backend_buffer_read(b.be, logits, b.logits, 0, VOCAB, &err);
    if (r) { /* what is asked of it later is answered with the first failure */
        cr_assert_eq(r, -EIO, "%s %d: %s", variable, turn, err.text);
        cr_assert_not_null(strstr(err.text, "uncorrectable ECC error"), "%s", err.text);
        step(&b, 0, 1, NULL);
        cr_assert_eq(backend_sync(b.be, &again), -EIO);
        cr_assert_str_eq(again.text, err.text);
    }
    close_block(&b);
    unsetenv(variable);
    return r != 0;
}

Test(team, a_lost_device_is_reported_whatever_notices_it) {
    have_devices("2");
    for (int n = 1; n <= 2; n++) {
        int copies = 0, waits = 0;
        while (copies < 100 && lose_in_step("GPTQT_EMU_FAIL_COPY", n, copies + 1)) copies++;
        while (waits < 100 && lose_in_step("GPTQT_EMU_FAIL_SYNC", n, waits + 1)) waits++;
        cr_expect_geq(copies, 2, "%d devices: %d copies", n, copies);
        cr_expect_geq(waits, 1, "%d devices: %d waits", n, waits);
    }
}

/* At every copy and wait of a matrix on its way to the device. */
Test(team, a_device_lost_while_a_model_is_loaded_is_an_error_of_the_matrix) {
    static const char *const variables[] = {"GPTQT_EMU_FAIL_COPY", "GPTQT_EMU_FAIL_SYNC"};
    const struct bcq_spec spec = {BCQ_COMPACT, WIDE, HIDDEN, 3, 16, 4, 5, 0};
    struct weight_view view = {.is_bcq = 1, .rows = WIDE, .cols = HIDDEN};
    struct error err;
    void *data = matrix_bcq(&view.bcq, &spec, 7);
    for (int i = 0; i < 4; i++) {
        const char *variable = variables[i % 2];
        struct backend *be = open_devices(1, &err);
        struct backend_memory memory;
        int turn = 0, r = -EIO;
        cr_assert_not_null(be, "%s", err.text);
        view.is_bcq = i < 2;
        void *dense = i < 2 ? NULL : matrix_dense(&view, DTYPE_F16, WIDE, HIDDEN, 5);
        while (r && turn < 100) {
            char text[16];
            struct weight *w = NULL;
            be->ops->memory(be, &memory); /* the device is there again */
            snprintf(text, sizeof text, "%d", ++turn);
            setenv(variable, text, 1);
            r = backend_weight_new(be, &w, WEIGHT_LINEAR, &view, &err);
            be->ops->memory(be, &memory);
            unsetenv(variable);
            if (!r) backend_weight_free(be, w);
            if (!r) break;
            cr_assert_eq(r, -EIO, "%s %d: %s", variable, turn, err.text);
            cr_assert_not_null(strstr(err.text, "ECC"), "%s", err.text);
            cr_assert_null(w);
            cr_assert(memory.weights == 0 && memory.work == 0, "%s %d", variable, turn);
        }
        cr_expect_gt(turn, 1, "%s", variable);
        backend_close(be);
        free(dense);
    }
    free(data);
}

Test(team, memory_missing_on_the_second_device_is_reported) {
    struct error err;
    struct block b = {0};
    have_devices("2");
    b.be = open_devices(2, &err);
    cr_assert_not_null(b.be, "%s", err.text);
    setenv("GPTQT_EMU_FAIL_DEVICE", "1", 1);
    setenv("GPTQT_EMU_FAIL_ALLOC", "1", 1);
    cr_expect_eq(backend_buffer_new(b.be, &b.x, 100, &err), -ENOMEM);
    cr_expect_not_null(strstr(err.text, "device 1: no 0.0 MiB on the device"), "%s", err.text);
    unsetenv("GPTQT_EMU_FAIL_ALLOC");
    cr_expect_eq(backend_buffer_new(b.be, &b.x, 100, &err), 0);
    backend_buffer_free(b.be, b.x);
    backend_close(b.be);
}
