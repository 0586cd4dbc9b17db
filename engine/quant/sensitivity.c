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
#include "engine/source.h"
#include "kernels/error.h"
#include "kernels/expand.h"

enum { NAME_SIZE = 192 };

static const char file[] = "sensitivities.json";

/* What gets bits together: the roles of a block that are set. */
struct unit {
    int layer;
    unsigned roles; /* bit per role */
    enum calibrate_input input;
    char name[NAME_SIZE]; /* of its first matrix */
};

struct sensitivity {
    const struct sensitivity_job *job;
    const struct model_config *config;
    struct model *model;
    struct probe *probe;
    struct unit *units; /* (n_units) block by block */
    struct mixed_unit *table;
    size_t n_units;
    double weights; /* coded, of all units */
    float *w, *q;   /* the largest matrix, twice */
    json_t *found;  /* name of a unit -> four harms */
};

const char *sensitivity_by_name(enum sensitivity_by by) {
    static const char *const names[] = {"kl", "loss"};
    return (size_t)by < sizeof names / sizeof *names ? names[by] : NULL;
}

const char *sensitivity_per_name(enum sensitivity_per per) {
    static const char *const names[] = {"matrix", "input"};
    return (size_t)per < sizeof names / sizeof *names ? names[per] : NULL;
}

int sensitivity_check(const struct sensitivity_options *o, const struct layer_options *layer,
                      struct error *err) {
    if (o->budget == 0.0) return 0;
    if (!(o->budget > 0.0 && o->budget <= 64.0))
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
    char name[NAME_SIZE];
    has_role(s, role, &rows, &cols);
    model_linear_name(s->model, layer, (enum model_role)role, name, sizeof name);
    if (!joins) {
        s->units[s->n_units++] =
            (struct unit){.layer = layer, .input = calibrate_input_of((enum model_role)role)};
        snprintf(s->units[s->n_units - 1].name, NAME_SIZE, "%s", name);
    }
    struct unit *u = &s->units[s->n_units - 1];
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
    size_t most = (size_t)s->config->n_layers * ROLE_COUNT, largest = 1;
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
            if (n > largest) largest = n;
        }
    }
    s->w = malloc(largest * sizeof *s->w);
    s->q = malloc(largest * sizeof *s->q);
    return s->w && s->q ? 0 : error_set(err, -ENOMEM, "mixed: out of memory");
}

static double bits_of(const struct sensitivity *s, int choice) {
    double bytes = 0.0;
    for (size_t i = 0; i < s->n_units; i++) bytes += (double)s->table[i].bytes[choice];
    return 8.0 * bytes / s->weights;
}

static int check_range(const struct sensitivity *s, struct error *err) {
    double budget = s->job->options->budget, least = bits_of(s, 0);
    double most = bits_of(s, BCQ_MAX_BITS - 1);
    if (budget >= least && budget <= most) return 0;
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
static bool take_found(struct sensitivity *s, size_t unit) {
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

static int keep(struct sensitivity *s, size_t unit, struct error *err) {
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

/* -- Measuring -------------------------------------------------------------------------------- */

/* Codes one matrix as cheaply as it makes sense; the block runs on it from then on. */
static int code_matrix(struct sensitivity *s, const struct layer_input *in, int layer, int role,
                       int bits, double *loss, struct error *err) {
    struct layer_options o = *s->job->layer;
    struct layer_result result = {0};
    int rows, cols;
    has_role(s, role, &rows, &cols);
    o.bits = bits;
    o.refine = o.explore = 0;
    o.codes.search = CODES_LOOP;
    int r = model_read_linear(s->model, layer, (enum model_role)role, s->w, err);
    if (r == 0) r = layer_quantize(&result, in, s->w, rows, &o, err);
    if (r < 0) return r;
    if (result.energy > 0.0) *loss += result.loss / result.energy;
    if (s->job->options->by == SENSITIVITY_KL) {
        struct weight_view coded = layer_view(&result);
        r = weight_expand(&coded, 0, rows, s->q, err);
        struct weight_view view = {.type = DTYPE_F32, .rows = rows, .cols = cols, .data = s->q};
        if (r == 0) r = model_replace_linear(s->model, layer, (enum model_role)role, &view, err);
    }
    layer_result_free(&result);
    return r;
}

static int measure_at(struct sensitivity *s, const struct layer_input *in, size_t unit, int bits,
                      struct error *err) {
    const struct unit *u = &s->units[unit];
    double loss = 0.0, harm = 0.0;
    int r = 0;
    for (int role = 0; r == 0 && role < ROLE_COUNT; role++)
        if (u->roles >> role & 1) r = code_matrix(s, in, u->layer, role, bits, &loss, err);
    if (r == 0 && s->job->options->by == SENSITIVITY_KL) r = probe_divergence(s->probe, &harm, err);
    s->table[unit].harm[bits - 1] = s->job->options->by == SENSITIVITY_KL ? harm : loss;
    return r;
}

static int measure(struct sensitivity *s, size_t unit, struct error *err) {
    const struct unit *u = &s->units[unit];
    struct layer_input *in = NULL;
    int n;
    const double *moments = probe_moments(s->probe, u->input, &n);
    size_t cells = (size_t)n * (size_t)n;
    double *h = malloc(cells * sizeof *h); /* the input damps it in place */
    if (!h) return error_set(err, -ENOMEM, "moments: out of memory");
    memcpy(h, moments, cells * sizeof *h);
    int r = layer_input_new(&in, h, n, s->job->layer, err);
    for (int bits = 1; r == 0 && bits <= BCQ_MAX_BITS; bits++)
        r = measure_at(s, in, unit, bits, err);
    layer_input_free(in);
    free(h);
    if (r < 0) return error_prefix(err, r, "%s", u->name);
    if (s->job->options->by == SENSITIVITY_KL) {
        model_drop_layer(s->model, u->layer);
        r = model_load_layer(s->model, u->layer, err);
    }
    return r == 0 ? keep(s, unit, err) : r;
}

/* The units of one block, which begin at *unit. */
static int do_block(struct sensitivity *s, int layer, size_t *unit, struct error *err) {
    bool collected = false, compares = s->job->options->by == SENSITIVITY_KL;
    int r = compares ? 0 : model_load_layer(s->model, layer, err);
    for (; r == 0 && *unit < s->n_units && s->units[*unit].layer == layer; (*unit)++) {
        if (take_found(s, *unit)) continue;
        if (!collected) r = probe_collect(s->probe, err);
        collected = true;
        if (r == 0) r = measure(s, *unit, err);
    }
    if (r == 0) r = probe_advance(s->probe, err);
    if (!compares) model_drop_layer(s->model, layer);
    return r;
}

static bool all_found(struct sensitivity *s) {
    for (size_t i = 0; i < s->n_units; i++)
        if (!take_found(s, i)) return false;
    return true;
}

static int measure_all(struct sensitivity *s, struct error *err) {
    const struct sensitivity_job *job = s->job;
    size_t unit = 0;
    bool compares = job->options->by == SENSITIVITY_KL;
    int r = 0;
    if (all_found(s)) return 0;
    for (int layer = 0; compares && r == 0 && layer < s->config->n_layers; layer++)
        r = model_load_layer(s->model, layer, err);
    if (r == 0)
        r = probe_open(&s->probe, s->model, job->tokens, job->n_windows, job->ctx,
                       job->layer->n_threads, compares, err);
    for (int layer = 0; r == 0 && layer < s->config->n_layers; layer++) {
        r = do_block(s, layer, &unit, err);
        if (r == 0 && job->progress) job->progress(job->arg, layer + 1, s->config->n_layers);
    }
    return r;
}

static int allocate(struct sensitivity *s, int *bits, struct error *err) {
    int *chosen = malloc((s->n_units + 1) * sizeof *chosen);
    if (!chosen) return error_set(err, -ENOMEM, "mixed: out of memory");
    uint64_t budget = (uint64_t)(s->job->options->budget * s->weights / 8.0 + 0.5);
    int r = mixed_allocate(chosen, s->table, s->n_units, budget, err);
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
    probe_close(s.probe);
    model_close(s.model);
    json_decref(s.found);
    free(s.units);
    free(s.table);
    free(s.w);
    free(s.q);
    return r;
}
