#include "engine/quant/merge.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/quant/quantize.h"
#include "engine/quant/shard.h"
#include "engine/source.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

static const char model[] = "models/llama-gqa"; /* three blocks */

static struct quantize_options quick(void) {
    struct quantize_options o;
    quantize_defaults(&o);
    o.layer.n_ranges = 4;
    o.layer.n_threads = 2;
    o.windows = 6;
    o.ctx = 32;
    o.is_static = true;
    return o;
}

static int run(const char *out, const struct quantize_options *o, struct error *err) {
    char path[SCRATCH_PATH];
    struct quantize_summary summary;
    struct quantize_events events = {0};
    struct source *src;
    int r = source_open(&src, scratch_fixture(path, model), err);
    if (r < 0) return r;
    r = quantize_run(&summary, out, src, o, &events, err);
    source_close(src);
    return r;
}

/* A folder with the parts "0:1", "1:2" and so on that one test needs. */
struct bench {
    char folder[SCRATCH_PATH], out[SCRATCH_PATH];
    char names[8][SCRATCH_PATH];
    const char *parts[8];
    int n;
};

static void begin(struct bench *b) {
    *b = (struct bench){0};
    scratch_make(b->folder);
    scratch_join(b->out, b->folder, "out");
}

static void add_part(struct bench *b, int first, int end, const struct quantize_options *o) {
    char name[32];
    struct error err;
    struct quantize_options part = *o;
    snprintf(name, sizeof name, "part%d-%d-%d", b->n, first, end);
    b->parts[b->n] = scratch_join(b->names[b->n], b->folder, name);
    part.first_block = first;
    part.end_block = end;
    cr_assert_eq(run(b->parts[b->n], &part, &err), 0, "%s", err.text);
    b->n++;
}

static int join(struct bench *b, struct quantize_summary *summary, struct error *err) {
    return merge_parts(summary, b->out, b->parts, b->n, false, err);
}

Test(merge, parts_join_to_the_bytes_of_one_run) {
    struct bench b;
    struct quantize_summary joined;
    struct quantize_options o = quick();
    struct error err;
    char whole[SCRATCH_PATH];
    begin(&b);
    scratch_join(whole, b.folder, "whole");
    cr_assert_eq(run(whole, &o, &err), 0, "%s", err.text);
    add_part(&b, 2, 3, &o);
    o.layer.n_threads = 1;
    add_part(&b, 0, 1, &o);
    add_part(&b, 1, 2, &o);
    cr_assert_eq(join(&b, &joined, &err), 0, "%s", err.text);
    cr_assert_eq(joined.n_layers, 3);
    cr_assert(joined.own_text && joined.has_role[ROLE_DOWN] && joined.bits_per_weight > 3.0);
    int files = scratch_each(whole, scratch_see_same, b.out);
    cr_assert_geq(files, 3);
    cr_assert_eq(scratch_each(b.out, scratch_see_same, whole), files);
    scratch_remove(b.folder);
}

Test(merge, parts_may_look_at_whole_blocks) {
    static const struct blockwise_options methods[] = {{.hessian = HESSIAN_FISHER},
                                                       {.hessian = HESSIAN_GUIDED},
                                                       {.clip_epochs = 1},
                                                       {.tune_epochs = 1},
                                                       {.transform = TRANSFORM_GRID}};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        struct bench b;
        struct quantize_summary joined;
        struct quantize_options o = quick();
        struct error err;
        char whole[SCRATCH_PATH];
        begin(&b);
        o.blockwise = methods[i];
        cr_assert_eq(run(scratch_join(whole, b.folder, "whole"), &o, &err), 0, "%s", err.text);
        add_part(&b, 2, 3, &o);
        add_part(&b, 0, 2, &o);
        cr_assert_eq(join(&b, &joined, &err), 0, "%s", err.text);
        int files = scratch_each(whole, scratch_see_same, b.out);
        cr_assert_eq(scratch_each(b.out, scratch_see_same, whole), files, "%zu", i);
        scratch_remove(b.folder);
    }
}

Test(merge, an_interrupted_part_goes_on) {
    struct bench b;
    struct quantize_summary joined;
    struct quantize_options o = quick();
    struct error err;
    char whole[SCRATCH_PATH], part[SCRATCH_PATH];
    begin(&b);
    scratch_join(whole, b.folder, "whole");
    cr_assert_eq(run(whole, &o, &err), 0, "%s", err.text);
    scratch_join(part, b.folder, "part1-1-3");
    struct quantize_options stopped = o;
    stopped.first_block = 1;
    stopped.end_block = 3;
    stopped.stop_after = 1;
    add_part(&b, 0, 1, &o);
    cr_assert_eq(run(part, &stopped, &err), -ECANCELED);
    add_part(&b, 1, 3, &o);
    cr_assert_str_eq(b.parts[1], part);
    cr_assert_eq(join(&b, &joined, &err), 0, "%s", err.text);
    scratch_each(whole, scratch_see_same, b.out);
    scratch_remove(b.folder);
}

static void check_refused(struct bench *b, const char *words, const char *part) {
    struct quantize_summary joined;
    struct error err;
    cr_assert_eq(join(b, &joined, &err), -EINVAL, "%s", words);
    cr_assert(strstr(err.text, words), "'%s' lacks '%s'", err.text, words);
    if (part) cr_assert(strstr(err.text, part), "'%s' lacks '%s'", err.text, part);
}

Test(merge, missing_and_double_blocks_are_named) {
    struct bench b;
    struct quantize_options o = quick();
    begin(&b);
    add_part(&b, 0, 1, &o);
    check_refused(&b, "blocks 1:3 are in no part", NULL);
    add_part(&b, 2, 3, &o);
    check_refused(&b, "blocks 1:2 are in no part", b.parts[1]);
    add_part(&b, 1, 3, &o);
    check_refused(&b, "both have block 2", b.parts[2]);
    scratch_remove(b.folder);
}

Test(merge, parts_of_other_runs_are_named) {
    struct bench b;
    struct quantize_options o = quick(), other = quick();
    begin(&b);
    add_part(&b, 0, 1, &o);
    other.layer.bits = 2;
    add_part(&b, 1, 3, &other);
    check_refused(&b, "'bits'", b.parts[1]);
    b.n = 1;
    other = quick();
    other.seed = 7;
    add_part(&b, 1, 3, &other);
    check_refused(&b, "'text'", b.parts[0]);
    scratch_remove(b.folder);
}

Test(merge, what_is_no_part_is_refused) {
    struct bench b;
    struct quantize_options o = quick();
    struct quantize_summary joined;
    struct error err;
    begin(&b);
    add_part(&b, 0, 3, &o);
    cr_assert_eq(join(&b, &joined, &err), -EBADMSG, "a checkpoint is no part");
    cr_assert(strstr(err.text, "no part"), "%s", err.text);
    b.parts[0] = "/nowhere";
    cr_assert_eq(join(&b, &joined, &err), -ENOENT);
    b.parts[0] = b.out;
    cr_assert_eq(join(&b, &joined, &err), -EINVAL);
    scratch_remove(b.folder);
}

static char *find_bytes(char *at, size_t n, const char *what) {
    size_t m = strlen(what);
    for (; n >= m; at++, n--)
        if (!memcmp(at, what, m)) return at;
    return NULL;
}

/* Writes text over a part's file with the first `from` in it replaced by `to`. */
static void edit(const char *part, const char *file, const char *from, const char *to) {
    char path[SCRATCH_PATH];
    size_t n;
    char *text = scratch_load(scratch_join(path, part, file), &n);
    char *edited = calloc(n + strlen(to) + 1, 1), *end = text + n;
    cr_assert(edited);
    char *at = find_bytes(text, n, from);
    cr_assert(at, "%s has no '%s'", file, from);
    size_t head = (size_t)(at - text), tail = (size_t)(end - at) - strlen(from);
    memcpy(edited, text, head);
    memcpy(edited + head, to, strlen(to));
    memcpy(edited + head + strlen(to), at + strlen(from), tail);
    scratch_save(path, edited, head + strlen(to) + tail);
    free(text);
    free(edited);
}

Test(merge, damaged_parts_are_refused) {
    static const struct {
        const char *file, *from, *to, *words;
    } cases[] = {
        {"config.json", "\"first\": 0", "\"first\": -1", "shard"},
        {"config.json", "\"end\": 2", "\"end\": \"2\"", "shard"},
        {"config.json", "q_proj", "x_proj", "x_proj"},
        {"config.json", "\"role\": \"q\"", "\"role\": \"?\"", "listed"},
        {"layer_errors.json", "q_proj", "x_proj", "q_proj"},
        {"layer_errors.json", "{", "[", "layer_errors"},
        {"model.safetensors", "BCQ1", "BCQ0", "tensor"},
        {"model.safetensors", "layers.1", "layers.2", "layers"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bench b;
        struct quantize_options o = quick();
        struct quantize_summary joined;
        struct error err;
        begin(&b);
        add_part(&b, 0, 2, &o);
        add_part(&b, 2, 3, &o);
        edit(b.parts[0], cases[i].file, cases[i].from, cases[i].to);
        int r = join(&b, &joined, &err);
        cr_assert(r == -EBADMSG || r == -EINVAL, "case %zu: %d %s", i, r, err.text);
        cr_assert(strstr(err.text, cases[i].words), "case %zu: %s", i, err.text);
        scratch_remove(b.folder);
    }
}

Test(merge, a_part_is_refused_as_a_model_and_without_static_inputs) {
    struct bench b;
    struct quantize_options o = quick();
    struct source *src;
    struct error err;
    begin(&b);
    add_part(&b, 1, 2, &o);
    cr_assert_eq(source_open(&src, b.parts[0], &err), -ENOTSUP);
    cr_assert(strstr(err.text, "--merge"), "%s", err.text);
    o.first_block = 1;
    o.is_static = false;
    cr_assert_eq(run(b.out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "static"), "%s", err.text);
    o.is_static = true;
    o.end_block = 4;
    cr_assert_eq(run(b.out, &o, &err), -EINVAL);
    cr_assert(strstr(err.text, "0:3"), "%s", err.text);
    scratch_remove(b.folder);
}

Test(merge, names_tell_blocks) {
    cr_assert_eq(shard_block_of("model.layers.12.mlp.up_proj.bcq", 30), 12);
    cr_assert_eq(shard_block_of("transformer.h.0.ln_1.weight", 30), 0);
    cr_assert_eq(shard_block_of("model.layers.30.mlp.up_proj.bcq", 30), -1);
    cr_assert_eq(shard_block_of("model.layers.1x.weight", 30), -1);
    cr_assert_eq(shard_block_of("lm_head.weight", 30), -1);
    cr_assert_eq(shard_block_of("a.99999999999999999999.b", 30), -1);
    cr_assert_eq(shard_block_of("", 30), -1);
}
