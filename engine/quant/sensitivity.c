#include "engine/quant/sensitivity.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint_writer.h"
#include "engine/config.h"
#include "engine/json_guard.h"
#include "engine/map.h"
#include "engine/quant/codebook.h"
#include "engine/quant/mixed.h"
#include "engine/quant/probe.h"
#include "engine/quant/sensitivity_state.h"
#include "engine/source.h"
#include "kernels/error.h"

static const char file[] = "sensitivities.json";

const char *sensitivity_by_name(enum sensitivity_by by) {
    static const char *const names[] = {"gradient", "kl", "loss"};
    return (size_t)by < sizeof names / sizeof *names ? names[by] : NULL;
}

const char *sensitivity_per_name(enum sensitivity_per per) {
    static const char *const names[] = {"matrix", "input"};
    return (size_t)per < sizeof names / sizeof *names ? names[per] : NULL;
}

bool sensitivity_wanted(const struct sensitivity_options *o) {
    return o->as_bits || o->budget != 0.0;
}

int sensitivity_check(const struct sensitivity_options *o, const struct layer_options *layer,
                      struct error *err) {
    if (!sensitivity_wanted(o)) return 0;
    if (!o->as_bits && !(o->budget > 0.0 && o->budget <= 64.0))
        return error_set(err, -EINVAL, "mixed: %g bits per weight is not in 0..64", o->budget);
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++) {
        struct layer_options at = *layer;
        at.bits = bits;
        int r = layer_check(&at, err);
        if (r < 0) return error_prefix(err, r, "mixed: at %d bits", bits);
    }
    return 0;
}

static bool has_role(const struct sensitivity *s, int role, int *rows, int *cols) {
    return model_linear_shape(s->model, (enum model_role)role, rows, cols);
}

/* -- Units and their sizes ------------------------------------------------------------------- */

static int matrix_bytes(uint64_t *ret, const struct layer_options *o, int bits, int rows, int cols,
                        struct error *err) {
    struct bcq_spec spec = {.kind = o->kind, .rows = rows, .cols = cols, .bits = bits};
    struct bcq_layout layout;
    spec.group = o->group == 0 || o->group > cols ? cols : o->group;
    if (o->kind != BCQ_FREE) {
        spec.scale_bits = o->scale_bits;
        spec.bias_bits = o->bias_bits;
    }
    if (o->kind == BCQ_COMPACT_GROUP && o->method == LAYER_GPTQT) {
        struct codebook_set *set;
        int step = o->step_bits ? o->step_bits : codebook_step_bits(bits);
        int r = codebook_set_new(&set, bits, step, spec.group, 256, err);
        if (r < 0) return r;
        spec.n_shapes = set->n_shapes;
        codebook_set_free(set);
    } else if (o->kind == BCQ_COMPACT_GROUP) {
        spec.n_shapes = 1;
    }
    bcq_layout(&layout, &spec);
    *ret = layout.total;
    if (o->outliers > 0.0)
        *ret += outliers_bytes(rows, cols, (uint32_t)(o->outliers / 100.0 * rows * cols));
    if (o->incoherence != LAYER_NATURAL)
        *ret += rotation_bytes(rows, cols, o->incoherence == LAYER_TURN_BOTH);
    return 0;
}

static int add_matrix(struct sensitivity *s, int layer, int role, bool joins, struct error *err) {
    int rows, cols;
    char name[SENSITIVITY_NAME_SIZE];
    has_role(s, role, &rows, &cols);
    model_linear_name(s->model, layer, (enum model_role)role, name, sizeof name);
    if (!joins) {
        s->units[s->n_units++] = (struct sensitivity_unit){
            .layer = layer, .input = calibrate_input_of((enum model_role)role)};
        snprintf(s->units[s->n_units - 1].name, SENSITIVITY_NAME_SIZE, "%s", name);
    }
    struct sensitivity_unit *u = &s->units[s->n_units - 1];
    u->roles |= 1u << role;
    s->weights += (double)rows * (double)cols;
    for (int bits = 1; bits <= BCQ_MAX_BITS; bits++) {
        uint64_t bytes = 0;
        int r = matrix_bytes(&bytes, s->job->layer, bits, rows, cols, err);
        if (r < 0) return error_prefix(err, r, "%s", name);
        s->table[s->n_units - 1].bytes[bits - 1] += bytes;
    }
    return 0;
}

/* Roles of one input stand side by side in enum model_role. */
static int make_units(struct sensitivity *s, struct error *err) {
    size_t most = (size_t)s->config->n_layers * ROLE_COUNT;
    s->largest = 1;
    s->units = calloc(most, sizeof *s->units);
    s->table = calloc(most, sizeof *s->table);
    if (!s->units || !s->table) return error_set(err, -ENOMEM, "mixed: out of memory");
    for (int layer = 0; layer < s->config->n_layers; layer++) {
        int last = -1;
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols, input = (int)calibrate_input_of((enum model_role)role);
            if (!has_role(s, role, &rows, &cols)) continue;
            bool joins = s->job->options->per == SENSITIVITY_INPUT && input == last;
            int r = add_matrix(s, layer, role, joins, err);
            if (r < 0) return r;
            last = input;
            size_t n = (size_t)rows * (size_t)cols;
            if (n > s->largest) s->largest = n;
        }
    }
    return 0;
}

static uint64_t bytes_at(const struct sensitivity *s, int bits) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < s->n_units; i++) bytes += s->table[i].bytes[bits - 1];
    return bytes;
}

static uint64_t budget_of(const struct sensitivity *s) {
    const struct sensitivity_options *o = s->job->options;
    if (o->as_bits) return bytes_at(s, s->job->layer->bits);
    return (uint64_t)(o->budget * s->weights / 8.0 + 0.5);
}

static int check_range(const struct sensitivity *s, struct error *err) {
    double budget = s->job->options->budget, least = 8.0 * (double)bytes_at(s, 1) / s->weights;
    double most = 8.0 * (double)bytes_at(s, BCQ_MAX_BITS) / s->weights;
    if (s->job->options->as_bits || (budget >= least && budget <= most)) return 0;
    return error_set(err, -EINVAL,
                     "mixed: %g bits per weight cannot be reached: 1 bit everywhere makes %.4f, 4 "
                     "bits %.4f, with all that is stored beside the codes",
                     budget, least, most);
}

/* -- What is found, kept ---------------------------------------------------------------------- */

static int read_found(struct sensitivity *s, struct error *err) {
    static const struct json_guard_limits limits = {.max_depth = 4, .max_items = 1u << 18};
    struct map map;
    if (checkpoint_writer_has(s->job->writer, file)) {
        int r = checkpoint_writer_map(s->job->writer, file, &map, err);
        if (r < 0) return r;
        r = json_guard_parse(&s->found, map.bytes, map.size, &limits, file, NULL);
        map_close(&map);
        if (r == 0 && json_is_object(s->found)) return 0;
        if (r == 0) json_decref(s->found);
    }
    s->found = json_object();
    return s->found ? 0 : error_set(err, -ENOMEM, "sensitivities: out of memory");
}

/* false when an earlier run has not got as far, or left something else. */
bool sensitivity_found(struct sensitivity *s, size_t unit) {
    const json_t *list = json_object_get(s->found, s->units[unit].name);
    if (json_array_size(list) != BCQ_MAX_BITS) return false;
    for (size_t i = 0; i < BCQ_MAX_BITS; i++) {
        const json_t *value = json_array_get(list, i);
        double harm = json_number_value(value);
        if (!json_is_number(value) || !(harm >= 0.0) || !isfinite(harm)) return false;
        s->table[unit].harm[i] = harm;
    }
    return true;
}

int sensitivity_keep(struct sensitivity *s, size_t unit, struct error *err) {
    const double *h = s->table[unit].harm;
    json_t *list = json_pack("[f, f, f, f]", h[0], h[1], h[2], h[3]);
    if (!list || json_object_set_new(s->found, s->units[unit].name, list) < 0)
        return error_set(err, -ENOMEM, "sensitivities: out of memory");
    char *text = json_dumps(s->found, JSON_INDENT(1) | JSON_SORT_KEYS);
    if (!text) return error_set(err, -ENOMEM, "sensitivities: out of memory");
    int r = checkpoint_writer_add_file(s->job->writer, file, text, strlen(text), err);
    free(text);
    return r;
}

static bool all_found(struct sensitivity *s) {
    for (size_t i = 0; i < s->n_units; i++)
        if (!sensitivity_found(s, i)) return false;
    return true;
}

static int measure_all(struct sensitivity *s, struct error *err) {
    /* At either end there is nothing to choose. */
    uint64_t budget = budget_of(s);
    if (budget <= bytes_at(s, 1) || budget >= bytes_at(s, BCQ_MAX_BITS)) {
        for (size_t i = 0; i < s->n_units; i++)
            for (int bits = 1; bits <= BCQ_MAX_BITS; bits++)
                s->table[i].harm[bits - 1] = BCQ_MAX_BITS - bits;
        return 0;
    }
    if (all_found(s)) return 0;
    return s->job->options->by == SENSITIVITY_GRADIENT ? sensitivity_by_gradient(s, err)
                                                       : sensitivity_by_probe(s, err);
}

struct layer_options sensitivity_cheap(const struct sensitivity *s, int bits) {
    struct layer_options o = *s->job->layer;
    o.bits = bits;
    o.refine = o.explore = 0;
    o.codes.search = CODES_LOOP;
    if (o.n_ranges > 5) o.n_ranges = 5;
    return o;
}

static int allocate(struct sensitivity *s, int *bits, struct error *err) {
    int *chosen = malloc((s->n_units + 1) * sizeof *chosen);
    if (!chosen) return error_set(err, -ENOMEM, "mixed: out of memory");
    int r = mixed_allocate(chosen, s->table, s->n_units, budget_of(s), err);
    for (size_t i = 0; r == 0 && i < s->n_units; i++)
        for (int role = 0; role < ROLE_COUNT; role++)
            if (s->units[i].roles >> role & 1)
                bits[s->units[i].layer * ROLE_COUNT + role] = chosen[i];
    free(chosen);
    return r;
}

int sensitivity_find(int *bits, const struct sensitivity_job *job, struct error *err) {
    struct sensitivity s = {.job = job, .config = source_config(job->source)};
    struct model_options options = {.kv_type = DTYPE_F32,
                                    .max_batch_tokens = probe_tokens(),
                                    .max_logit_rows = PROBE_LOGIT_ROWS,
                                    .n_kv_blocks = probe_kv_blocks(),
                                    .layers_on_demand = true};
    memset(bits, 0, (size_t)s.config->n_layers * ROLE_COUNT * sizeof *bits);
    int r = model_open(&s.model, job->backend, job->source, &options, err);
    if (r == 0) r = make_units(&s, err);
    if (r == 0) r = check_range(&s, err);
    if (r == 0) r = read_found(&s, err);
    if (r == 0) r = measure_all(&s, err);
    if (r == 0) r = allocate(&s, bits, err);
    model_close(s.model);
    json_decref(s.found);
    free(s.units);
    free(s.table);
    return r;
}
