#include "server/api/api.h"
#include "server/http.h"
#include "server/request.h"
#include "server/server.h"

void api_tokenize(struct server *s, struct http_exchange *x) {
    request_start(s, x, OPENAI_TOKENIZE);
}

/* Pieces of a table put side by side: nothing that the loop's thread could not do. */
static void add_pieces(struct text *out, const struct server *s,
                       const struct openai_request *wanted) {
    struct text prompt = {0};
    for (size_t i = 0; i < wanted->prompts[0].n_ids; i++) {
        size_t n = 0;
        const char *piece = engine_token_text(s->engine, wanted->prompts[0].ids[i], &n);
        if (piece) text_add(&prompt, piece, n);
    }
    text_adds(out, "{\"prompt\":\"");
    if (prompt.n) text_add_escaped(out, prompt.data, prompt.n);
    text_adds(out, "\"}");
    if (prompt.failed) out->failed = true;
    text_deinit(&prompt);
}

void api_detokenize(struct server *s, struct http_exchange *x) {
    struct openai_request *wanted = NULL;
    struct api_error e;
    if (request_parse(s, &wanted, x, OPENAI_DETOKENIZE, &e) < 0) {
        http_reply_error(x, &e);
        return;
    }
    struct text body = {0};
    add_pieces(&body, s, wanted);
    openai_request_free(wanted);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}
