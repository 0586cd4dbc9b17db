#include "server/eval_pairs.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/eval.h"
#include "engine/offline.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"
#include "server/lines.h"

struct pair {
    int32_t *tokens;
    size_t n, n_context;
};

static int add_ids(struct pair *p, const json_t *list, const char *field, struct error *err) {
    size_t n = json_array_size(list), i;
    json_t *item;
    int32_t *tokens = realloc(p->tokens, (p->n + n + 1) * sizeof *tokens);
    if (!tokens) return error_set(err, -ENOMEM, "out of memory");
    p->tokens = tokens;
    json_array_foreach((json_t *)list, i, item) {
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX)
            return error_set(err, -EINVAL, "%s[%zu]: a token id is needed", field, i);
        tokens[p->n++] = (int32_t)id;
    }
    return 0;
}

/* Both as one text: a token may reach across the border, and then counts for the continuation. */
static int add_texts(struct pair *p, const struct offline *o, const json_t *context,
                     const json_t *continuation, struct error *err) {
    size_t a = json_string_length(context), b = json_string_length(continuation), total = a + b;
    const char *head = json_string_value(context);
    char *text = malloc(total + 1);
    if (!text) return error_set(err, -ENOMEM, "out of memory");
    memcpy(text, head, a);
    memcpy(text + a, json_string_value(continuation), b);
    while (a > 0 && strchr(" \t\r\n", head[a - 1])) a--;
    int32_t *before = NULL;
    int r = tokenizer_encode(o->tokenizer, text, total, 0, &p->tokens, &p->n, err);
    if (r == 0) r = tokenizer_encode(o->tokenizer, text, a, 0, &before, &p->n_context, err);
    free(before);
    free(text);
    return r;
}

static int read_pair(struct pair *p, const struct offline *o, const json_t *line,
                     struct error *err) {
    const json_t *context = json_object_get(line, "context");
    const json_t *continuation = json_object_get(line, "continuation");
    if (json_is_string(context) && json_is_string(continuation))
        return add_texts(p, o, context, continuation, err);
    if (!json_is_array(context) || !json_is_array(continuation))
        return error_set(err, -EINVAL,
                         "context and continuation: two strings or two lists of token ids are "
                         "needed");
    int r = add_ids(p, context, "context", err);
    p->n_context = p->n;
    return r < 0 ? r : add_ids(p, continuation, "continuation", err);
}

static int score_pair(const struct pair *p, const struct offline *o, struct error *err) {
    struct eval_continuation c;
    if (p->n > (size_t)o->context)
        return error_set(err, -E2BIG, "%zu tokens are more than --ctx, %d", p->n, o->context);
    int r = eval_continuation(&c, o->model, p->tokens, p->n, p->n_context, err);
    if (r < 0) return r;
    json_t *answer = json_pack("{s:f, s:b, s:I}", "loglikelihood", c.log_likelihood, "greedy",
                               c.greedy, "tokens", (json_int_t)c.tokens);
    r = answer ? json_dumpf(answer, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12)) : -1;
    json_decref(answer);
    putchar('\n');
    return r < 0 ? error_set(err, -EIO, "standard output is closed") : 0;
}

static int one_line(void *arg, json_t *line, struct error *err) {
    const struct offline *o = arg;
    struct pair pair = {0};
    int r = read_pair(&pair, o, line, err);
    if (r == 0) r = score_pair(&pair, o, err);
    free(pair.tokens);
    return r;
}

int eval_pairs_run(struct offline *o, const char *path, struct error *err) {
    FILE *in = fopen(path, "r");
    if (!in) return error_set(err, -errno, "%s: %s", path, strerror(errno));
    int r = lines_each(in, one_line, o, err);
    fclose(in);
    return r < 0 ? error_prefix(err, r, "%s", path) : 0;
}
