#include "server/quantize_args.h"

#include <criterion/criterion.h>
#include <string.h>

#include "engine/quant/effort.h"

static struct quantize_args parse(const char *line) {
    static char text[256];
    static char *argv[32];
    struct quantize_args args;
    int argc = 0;
    cr_assert(strlen(line) < sizeof text);
    strcpy(text, line);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;
    quantize_args_parse(&args, argc, argv);
    return args;
}

Test(quantize_args, an_effort_lies_under_the_flags_wherever_it_stands) {
    struct quantize_options best;
    quantize_defaults(&best);
    effort_apply(EFFORT_BEST, &best, &best);
    static const char *const lines[] = {
        "q --refine 1 --effort best MODEL OUT --windows=7",
        "q MODEL --windows 7 OUT --effort=best --refine=1",
    };
    for (int i = 0; i < 2; i++) {
        struct quantize_args args = parse(lines[i]);
        cr_assert_eq(args.effort, EFFORT_BEST);
        cr_assert_eq(args.o.windows, 7);
        cr_assert_eq(args.o.layer.refine, 1);
        cr_assert_eq(args.o.layer.explore, best.layer.explore);
        cr_assert_eq(args.o.target, best.target);
        cr_assert_str_eq(args.model, "MODEL");
        cr_assert_str_eq(args.out, "OUT");
    }
}

Test(quantize_args, inputs_are_static_or_those_of_the_coded_blocks) {
    cr_expect_not(parse("q MODEL OUT").o.is_static);
    cr_expect(parse("q MODEL OUT --static").o.is_static);
    cr_expect(parse("q MODEL OUT --effort fast").o.is_static);
    cr_expect_not(parse("q --sequential MODEL OUT --effort fast").o.is_static);
    cr_expect_not(parse("q MODEL OUT --effort normal").o.is_static);
}

Test(quantize_args, a_normal_effort_takes_the_originals_inputs_where_flags_need_them) {
    static const char *const lines[] = {
        "q MODEL OUT --effort normal --static", "q MODEL OUT --moments DIR --effort normal",
        "q MODEL OUT --layers 0:2 --effort normal", "q MODEL OUT --effort normal --hessian guided",
        "q MODEL OUT --effort normal --learn-transform grid"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct quantize_args args = parse(lines[i]);
        cr_expect(args.o.is_static, "%s", lines[i]);
        cr_expect_eq(args.o.target, QUANTIZE_WEIGHTS, "%s", lines[i]);
        cr_expect_eq(args.o.windows, 64, "%s", lines[i]);
    }
    cr_expect_eq(parse("q MODEL OUT --effort normal").o.target, QUANTIZE_BLOCK);
    cr_expect_eq(parse("q MODEL OUT --effort normal --target weights").o.target, QUANTIZE_WEIGHTS);
    cr_expect_eq(parse("q MODEL OUT --effort normal --target-share 0.5").o.target_share, 0.5);
}

Test(quantize_args, no_effort_leaves_the_defaults) {
    struct quantize_options plain;
    quantize_defaults(&plain);
    struct quantize_args args = parse("q MODEL OUT");
    cr_assert_eq(args.effort, -1);
    cr_assert_eq(memcmp(&args.o.layer, &plain.layer, sizeof plain.layer), 0);
    cr_assert_eq(args.o.windows, plain.windows);
}

Test(quantize_args, the_best_tunes_where_it_can) {
    cr_assert_eq(parse("q MODEL OUT --effort best").tune.o.mode, TUNE_E2E, "its own text");
    cr_assert_eq(parse("q MODEL OUT --effort best -f TEXT").tune.o.mode, TUNE_E2E);
    cr_assert_eq(parse("q MODEL OUT --tune none -f TEXT --effort best").tune.o.mode, TUNE_NONE);
    cr_assert_eq(parse("q MODEL OUT --effort best -f TEXT --layers 1:2").tune.o.mode, TUNE_NONE);
    cr_assert_eq(parse("q MODEL OUT --effort normal -f TEXT").tune.o.mode, TUNE_NONE);
}

Test(quantize_args, order_is_one_of_three) {
    static const char *const names[] = {"act", "group", "none"};
    static const bool act[] = {true, true, false}, group[] = {false, true, false};
    for (int i = 0; i < 3; i++) {
        char line[64];
        snprintf(line, sizeof line, "q MODEL OUT --order %s", names[i]);
        struct quantize_args args = parse(line);
        cr_assert_eq(args.o.layer.act_order, act[i]);
        cr_assert_eq(args.o.layer.group_order, group[i]);
    }
}

Test(quantize_args, bits_are_mixed_by_a_number_as_the_bits_or_not) {
    struct quantize_args args = parse("q MODEL OUT --mixed 2.7");
    cr_expect_eq(args.o.mixed.budget, 2.7);
    cr_expect_not(args.o.mixed.as_bits);
    args = parse("q MODEL OUT --mixed bits");
    cr_expect_eq(args.o.mixed.budget, 0.0);
    cr_expect(args.o.mixed.as_bits);
    args = parse("q MODEL OUT --mixed 2.7 --effort normal");
    cr_expect_eq(args.o.mixed.budget, 2.7);
    cr_expect_not(args.o.mixed.as_bits);
    cr_expect(parse("q MODEL OUT --effort best").o.mixed.as_bits);
    cr_expect_not(parse("q MODEL OUT --effort best --mixed none").o.mixed.as_bits);
    cr_expect_not(parse("q MODEL OUT --effort normal --layers 0:2").o.mixed.as_bits);
}
