#include "server/api/api.h"

#include "server/http.h"
#include "server/server.h"

/* What routers read (id, max_model_len), then what people ask about a quantized model. */
static void add_model(struct text *out, const struct server *s) {
    const struct engine_info *info = s->info;
    text_adds(out, "{\"id\":");
    text_add_json(out, s->model);
    text_addf(out,
              ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"gptqt\",\"parent\":null,"
              "\"max_model_len\":%d,\"meta\":{\"architecture\":",
              (long long)s->created, info->context);
    text_add_json(out, info->architecture);
    text_adds(out, ",\"quantization\":");
    text_add_json(out, info->method);
    text_addf(out, ",\"bits\":%d,\"group\":%d,\"backend\":", info->bits, info->group);
    text_add_json(out, info->backend);
    text_addf(out,
              ",\"vocab\":%d,\"layers\":%d,\"hidden\":%d,\"weight_bytes\":%zu,\"kv_bytes\":%zu,"
              "\"tokenizer\":%s,\"chat\":%s}}",
              info->vocab, info->n_layers, info->hidden, info->weight_bytes, info->kv_bytes,
              info->has_tokenizer ? "true" : "false", info->has_chat_template ? "true" : "false");
}

void api_models(struct server *s, struct http_exchange *x) {
    struct text body = {0};
    text_adds(&body, "{\"object\":\"list\",\"data\":[");
    add_model(&body, s);
    text_adds(&body, "]}");
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}
