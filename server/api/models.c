#include "server/api/api.h"

#include <string.h>

#include "server/api/api_error.h"
#include "server/http.h"
#include "server/model_names.h"
#include "server/router.h"
#include "server/server.h"

/* What routers read (id, max_model_len), then what people ask about a quantized model. */
static void add_model(struct text *out, const struct server *s, const char *name, size_t n) {
    const struct engine_info *info = s->info;
    text_adds(out, "{\"id\":\"");
    text_add_escaped(out, name, n);
    text_addf(out, "\",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"gptqt\",\"root\":",
              (long long)s->created);
    text_add_json(out, s->model);
    text_addf(out,
              ",\"parent\":null,\"max_model_len\":%d,\"meta\":{\"architecture\":", info->context);
    text_add_json(out, info->architecture);
    text_adds(out, ",\"quantization\":");
    text_add_json(out, info->method);
    text_addf(out, ",\"bits\":%d,\"group\":%d,\"backend\":", info->bits, info->group);
    text_add_json(out, info->backend);
    text_addf(out,
              ",\"context_length\":%d,\"vocab\":%d,\"layers\":%d,\"hidden\":%d,"
              "\"weight_bytes\":%zu,\"kv_bytes\":%zu,\"tokenizer\":%s,\"chat\":%s}}",
              info->context, info->vocab, info->n_layers, info->hidden, info->weight_bytes,
              info->kv_bytes, info->has_tokenizer ? "true" : "false",
              info->has_chat_template ? "true" : "false");
}

void api_models(struct server *s, struct http_exchange *x) {
    struct text body = {0};
    const char *list = s->names, *name;
    text_adds(&body, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0, n; (name = model_names_next(&list, &n)); i++) {
        if (i) text_adds(&body, ",");
        add_model(&body, s, name, n);
    }
    text_adds(&body, "]}");
    http_header(x, "Cache-Control", "no-store");
    http_reply(x, 200, "application/json", &body);
}

void api_model(struct server *s, struct http_exchange *x) {
    struct text body = {0};
    char name[sizeof x->path];
    if (router_parameter(x->route, x->path, name, sizeof name) && model_names_has(s->names, name)) {
        add_model(&body, s, name, strlen(name));
        http_header(x, "Cache-Control", "no-store");
        http_reply(x, 200, "application/json", &body);
        return;
    }
    struct api_error e;
    api_error_set(&e, API_ERROR_MODEL, "model", "the model '%.64s' does not exist; see /v1/models",
                  name);
    http_reply_error(x, &e);
}
