#include "server/api/api.h"
#include "server/request.h"

void api_embeddings(struct server *s, struct http_exchange *x) {
    request_start(s, x, OPENAI_EMBEDDING);
}
