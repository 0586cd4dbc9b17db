#include "engine/quant/summary.h"

#include <math.h>

#include "engine/quant/quantize.h"

static double number(const json_t *entry, const char *key) {
    return json_number_value(json_object_get(entry, key));
}

void summary_add(struct quantize_summary *s, enum model_role role, int64_t n_weights,
                 const json_t *entry) {
    s->has_role[role] = true;
    s->decibels[role] += number(entry, "decibels") / s->n_layers;
    s->n_weights += n_weights;
    s->bits_per_weight += number(entry, "bits_per_weight") * (double)n_weights;
}

void summary_end(struct quantize_summary *s) {
    if (s->n_weights) s->bits_per_weight /= (double)s->n_weights;
}

void summary_describe(json_t *config, const struct quantize_summary *s) {
    json_t *means = json_object();
    for (int role = 0; role < ROLE_COUNT; role++)
        if (s->has_role[role])
            json_object_set_new(means, quantize_role_name((enum model_role)role),
                                json_real(round(100.0 * s->decibels[role]) / 100.0));
    json_object_set_new(config, "bits_per_weight",
                        json_real(round(1e4 * s->bits_per_weight) / 1e4));
    json_object_set_new(config, "layer_errors", means);
}
