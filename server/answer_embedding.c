/* The answer of /v1/embeddings: a vector for each input. */
#include <string.h>

#include "server/http.h"
#include "server/request_parts.h"
#include "server/server.h"

static void add_base64(struct text *out, const unsigned char *bytes, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        size_t left = n - i;
        unsigned word = (unsigned)bytes[i] << 16;
        if (left > 1) word |= (unsigned)bytes[i + 1] << 8;
        if (left > 2) word |= bytes[i + 2];
        const char four[] = {digits[word >> 18], digits[word >> 12 & 63],
                             left > 1 ? digits[word >> 6 & 63] : '=',
                             left > 2 ? digits[word & 63] : '='};
        text_add(out, four, sizeof four);
    }
}

/* Little-endian, whatever this machine is. */
static void add_packed(struct text *out, const float *vector, int n) {
    struct text bytes = {0};
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &vector[i], sizeof bits);
        const unsigned char four[] = {bits & 255, bits >> 8 & 255, bits >> 16 & 255, bits >> 24};
        text_add(&bytes, four, sizeof four);
    }
    text_adds(out, "\"");
    if (bytes.failed)
        out->failed = true;
    else if (bytes.n)
        add_base64(out, (const unsigned char *)bytes.data, bytes.n);
    text_adds(out, "\"");
    text_deinit(&bytes);
}

static void add_vector(struct text *out, const struct choice *c) {
    const float *vector = c->outcome ? c->outcome->vector : NULL;
    int n = vector ? c->outcome->n_vector : 0;
    text_adds(out, "{\"object\":\"embedding\",\"embedding\":");
    if (c->request->wanted->base64) {
        add_packed(out, vector, n);
    } else {
        text_adds(out, "[");
        for (int i = 0; i < n; i++) text_addf(out, i ? ",%.9g" : "%.9g", (double)vector[i]);
        text_adds(out, "]");
    }
    text_addf(out, ",\"index\":%d}", c->index);
}

static void on_finish(struct request *r, struct http_exchange *x) {
    struct text body = {0};
    int n_prompt = request_usage(r).n_prompt;
    text_adds(&body, "{\"object\":\"list\",\"id\":");
    text_add_json(&body, r->id);
    text_addf(&body, ",\"created\":%lld,\"model\":", (long long)r->render.created);
    text_add_json(&body, r->server->model);
    text_adds(&body, ",\"data\":[");
    for (int i = 0; i < r->n_choices; i++) {
        if (i) text_adds(&body, ",");
        add_vector(&body, &r->choices[i]);
    }
    text_addf(&body, "],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d}}", n_prompt, n_prompt);
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

const struct answer_form answer_embedding = {.finish = on_finish};
