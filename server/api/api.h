/* api.h - the endpoints, one function each.
 *
 * Owns      nothing.
 * Borrows   the server and the exchange.
 * Thread    the loop's.
 * Fails     into the answer.
 * Cost      parsing and rendering; what computes is left to the engine.
 *
 * Each answers the exchange at once or leaves it with a struct request. */
#ifndef SERVER_API_API_H
#define SERVER_API_API_H

struct http_exchange;
struct server;

void api_completions(struct server *s, struct http_exchange *x);
void api_chat(struct server *s, struct http_exchange *x);
void api_embeddings(struct server *s, struct http_exchange *x);
void api_responses(struct server *s, struct http_exchange *x);
void api_cancel(struct server *s, struct http_exchange *x);
void api_explain(struct server *s, struct http_exchange *x);
void api_tokenize(struct server *s, struct http_exchange *x);
void api_detokenize(struct server *s, struct http_exchange *x);
void api_model(struct server *s, struct http_exchange *x);
void api_models(struct server *s, struct http_exchange *x);
void api_health(struct server *s, struct http_exchange *x);
void api_health_live(struct server *s, struct http_exchange *x);
void api_health_ready(struct server *s, struct http_exchange *x);
void api_health_startup(struct server *s, struct http_exchange *x);
void api_metrics(struct server *s, struct http_exchange *x);
void api_load(struct server *s, struct http_exchange *x);
void api_is_sleeping(struct server *s, struct http_exchange *x);
void api_document(struct server *s, struct http_exchange *x);
void api_version(struct server *s, struct http_exchange *x);
void api_site(struct server *s, struct http_exchange *x);

#endif
