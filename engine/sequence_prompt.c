#include "engine/sequence_prompt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "engine/engine_request.h"
#include "engine/sequence.h"
#include "engine/tokenizer.h"
#include "kernels/error.h"

/* Takes ids on success. Returns 1 when it dropped some of them. */
static int set_tokens(struct sequence *s, int32_t *ids, size_t n, struct error *err) {
    size_t most = engine_request_room(s->request, s->shape->context);
    size_t keep = engine_request_kept(s->request, s->shape->context, n), drop = n - keep;
    /* Words that clients of other servers look for. */
    if (keep > most)
        return error_set(err, -E2BIG,
                         "this model's maximum context length is %d tokens, the prompt has %zu",
                         s->shape->context, n);
    if (drop > 0) memmove(ids, ids + drop, keep * sizeof *ids);
    n = keep;
    s->tokens = ids;
    s->n_tokens = s->n_prompt = s->capacity = (int)n;
    return drop > 0;
}

static int tokenize(struct sequence *s, const char *text, size_t n, bool add_special,
                    struct error *err) {
    unsigned flags = TOKENIZER_PARSE_SPECIAL;
    if (add_special && !s->request->no_special) flags |= TOKENIZER_ADD_SPECIAL;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    int r = tokenizer_encode(s->shape->tokenizer, text, n, flags, &ids, &n_ids, err);
    if (r < 0) return r;
    r = set_tokens(s, ids, n_ids, err);
    if (r < 0) free(ids);
    return r;
}

/* The prompt's text as it was given; what is not UTF-8 in it is replaced. */
static int echo_text(struct sequence *s, const char *text, size_t n, struct error *err) {
    if (!s->request->echo) return 0;
    struct detok whole = {0};
    if (detok_push_bytes(&whole, text, n, &s->text) < 0 || detok_flush(&whole, &s->text) < 0)
        return error_set(err, -ENOMEM, "prompt: out of memory");
    return 0;
}

/* The text of what counts as the prompt, where that is not the text that was given. */
static int echo_tokens(struct sequence *s, struct error *err) {
    if (!s->request->echo || !s->shape->tokenizer) return 0;
    struct buf bytes = {0};
    int r = tokenizer_decode(s->shape->tokenizer, s->tokens, (size_t)s->n_prompt, false, &bytes);
    r = r < 0 ? error_set(err, r, "prompt: out of memory")
              : echo_text(s, bytes.data ? bytes.data : "", bytes.len, err);
    buf_free(&bytes);
    return r;
}

static int take_text(struct sequence *s, const char *text, size_t n, bool add_special,
                     struct error *err) {
    int r = tokenize(s, text, n, add_special, err);
    return r < 0 ? r : r > 0 ? echo_tokens(s, err) : echo_text(s, text, n, err);
}

static int from_ids(struct sequence *s, struct error *err) {
    struct engine_request *request = s->request;
    int r = set_tokens(s, request->ids, request->n_ids, err);
    if (r < 0) return r;
    request->ids = NULL;
    return echo_tokens(s, err);
}

static int render(const struct sequence *s, struct buf *out, struct error *err) {
    const struct engine_request *request = s->request;
    size_t n = (size_t)request->n_messages;
    struct chat_message *messages = calloc(n, sizeof *messages);
    if (!messages) return error_set(err, -ENOMEM, "chat: out of memory");
    for (size_t i = 0; i < n; i++) {
        const struct engine_message *m = &request->messages[i];
        messages[i] = (struct chat_message){.role = m->role,
                                            .role_len = strlen(m->role),
                                            .content = m->content,
                                            .content_len = strlen(m->content)};
    }
    struct chat_prompt prompt = {.messages = messages,
                                 .n_messages = n,
                                 .add_generation_prompt = true,
                                 .bos = s->shape->bos,
                                 .eos = s->shape->eos};
    int r = chat_render(s->shape->chat, &prompt, out, err);
    free(messages);
    return r;
}

static int from_messages(struct sequence *s, struct error *err) {
    struct buf text = {0};
    int r = render(s, &text, err);
    const char *data = text.data ? text.data : "";
    if (r == 0) r = take_text(s, data, text.len, !chat_template_has_bos(s->shape->chat), err);
    buf_free(&text);
    return r;
}

int sequence_prompt_make(struct sequence *s, struct error *err) {
    const struct engine_request *request = s->request;
    int r = request->ids    ? from_ids(s, err)
            : request->text ? take_text(s, request->text, request->text_len, true, err)
                            : from_messages(s, err);
    if (r == 0) engine_request_drop_prompt(s->request);
    return r;
}
