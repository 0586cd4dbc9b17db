/* Bytes as config.json and as generation_config.json. A config that is accepted must be usable:
 * the promises of its header are checked. */
#include "engine/config.h"

#include "kernels/error.h"
#include "tests/fuzz/driver.h"

static void check(int promise) {
    if (!promise) __builtin_trap();
}

static void check_config(const struct model_config *c) {
    check(c->hidden > 0 && c->hidden <= BCQ_MAX_DIM);
    check(c->n_layers > 0 && c->n_layers <= CONFIG_MAX_LAYERS);
    check(c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0);
    check(c->head_dim > 0 && c->head_dim <= CONFIG_MAX_HEAD_DIM);
    check(c->n_heads * c->head_dim <= BCQ_MAX_DIM);
    check(c->arch != ARCH_LLAMA || c->head_dim % 2 == 0);
    check(c->intermediate > 0 && c->intermediate <= BCQ_MAX_DIM);
    check(c->embed_dim > 0 && c->embed_dim <= BCQ_MAX_DIM);
    check(c->vocab > 0 && c->vocab <= BCQ_MAX_DIM);
    check(c->max_positions > 0 && c->max_positions <= CONFIG_MAX_POSITIONS);
    check(c->norm_eps >= 0 && c->norm_eps <= 1 && c->bos >= -1 && c->bos < c->vocab);
    check(c->n_eos >= 0 && c->n_eos <= CONFIG_MAX_EOS);
    for (int i = 0; i < c->n_eos; i++) check(c->eos[i] >= 0 && c->eos[i] < c->vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char good[] =
        "{\"model_type\":\"llama\",\"hidden_size\":8,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":2,\"intermediate_size\":16,\"vocab_size\":10}";
    struct error err;
    struct model_config c;
    if (config_parse(&c, data, size, NULL, 0, &err) == 0) check_config(&c);
    if (config_parse(&c, good, sizeof good - 1, data, size, &err) == 0) check_config(&c);
    return 0;
}
