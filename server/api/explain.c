#include "server/api/api.h"
#include "server/http.h"
#include "server/json_member.h"
#include "server/request.h"
#include "server/server.h"

void api_explain(struct server *s, struct http_exchange *x) {
    bool chat = json_member(x->body.data, x->body.n, "messages");
    request_explain(s, x, chat ? OPENAI_CHAT : OPENAI_COMPLETION);
}
