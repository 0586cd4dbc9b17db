/* Checks a GPU plugin, emulated or real, against kernels/ref and sums in fp64:
 * gpu_check PLUGIN.so [WORD [N [small]]]: the parts whose name has the word ("" is all of them);
 * with N of 0..7 every eighth of their cases only, so that eight runs, each under another schedule
 * of the emulation, make a whole; small: every kernel in cases that take seconds, for many
 * schedules and for sanitizers, some of them others for each N. */
#include "tests/kernels/gpu.h"

#include <dlfcn.h>
#include <stdarg.h>

#include "kernels/cuda/plugin.h"

struct backend *be;
struct ops ref;
void (*graph_counts)(long *captures, long *replays);
static long n_expectations;
static int n_failures;
static int eighth = -1; /* of the cases; all when negative */
static bool small;

bool is_small(void) { return small; }

bool is_left_out(int turn) { return eighth >= 0 && turn % 8 != eighth; }

void expect(bool good, const char *format, ...) {
    n_expectations++;
    if (good) return;
    if (n_failures++ > 20) return;
    va_list args;
    va_start(args, format);
    printf("# failed: ");
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

float *normal(size_t n, uint64_t seed) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = matrix_normal(&seed);
    return x;
}

struct buffer *buffer_of(const float *x, size_t n) {
    struct buffer *b = NULL;
    struct error err;
    if (backend_buffer_new(be, &b, n, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    if (x) backend_buffer_write(be, b, 0, x, n);
    return b;
}

float *read_all(const struct buffer *b, size_t n) {
    struct error err;
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (backend_buffer_read(be, x, b, 0, n, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    return x;
}

struct weight *weight_of(enum weight_use use, const struct weight_view *view) {
    struct weight *w = NULL;
    struct error err;
    if (backend_weight_new(be, &w, use, view, &err)) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    return w;
}

double distance(const float *a, const float *b, size_t n) {
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    double r = norm > 0 ? sqrt(d / norm) : sqrt(d);
    return isnan(r) ? INFINITY : r;
}

void batch_of(struct some_batch *b, int n, int from) {
    for (int t = 0; t < n; t++) {
        b->tokens[t] = (t * 7) % 11;
        b->seqs[t] = t % 2;
        b->positions[t] = from + t / 2;
    }
    for (int i = 0; i < 2 * N_BLOCKS; i++) b->blocks[i] = (i * 37 + 5) % (2 * N_BLOCKS);
    b->batch = (struct batch){n, 2, b->tokens, b->positions, b->seqs, b->blocks, N_BLOCKS};
}

static const struct {
    const char *name;
    void (*run)(void);
} parts[] = {
    {"elements", check_elements},
    {"embed", check_embed},
    {"upload", check_upload},
    {"norm", check_norm},
    {"rope", check_rope},
    {"best", check_best},
    {"top", check_top},
    {"attention", check_attention},
    {"steps", check_steps},
    {"graphs", check_graphs},
    {"dense", check_dense},
    {"forms", check_forms},
    {"whole", check_whole},
    {"compact", check_compact},
    {"free", check_free},
    {"shapes", check_shapes},
    {"room", check_room},
    {"sets", check_sets},
    {"sections", check_sections},
    {"outliers", check_outliers},
    {"rotations", check_rotations},
    {"not_finite", check_not_finite},
};
enum { N_PARTS = sizeof parts / sizeof *parts };

static bool is_asked(int part, const char *word) { return !word || strstr(parts[part].name, word); }

/* Runs the parts whose names hold word, all without one; false when one failed. */
static bool run_parts(const char *word) {
    int asked = 0, number = 0, bad = 0;
    for (int i = 0; i < N_PARTS; i++) asked += is_asked(i, word);
    printf("1..%d\n# %s: %s\n", asked, be->name, be->detail);
    for (int i = 0; i < N_PARTS; i++) {
        if (!is_asked(i, word)) continue;
        n_expectations = n_failures = 0;
        parts[i].run();
        printf("%s %d - %s\n# %d of %ld expectations failed\n", n_failures ? "not ok" : "ok",
               ++number, parts[i].name, n_failures, n_expectations);
        fflush(stdout);
        bad += n_failures > 0;
    }
    return asked > 0 && bad == 0;
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: gpu_check PLUGIN.so [WORD [0..7 [small]]]\n"), 2;
    if (argc > 3) eighth = atoi(argv[3]);
    small = argc > 4 && !strcmp(argv[4], "small");
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) return printf("Bail out! %s\n", dlerror()), 1;
    gpu_plugin_get *get;
    *(void **)&get = dlsym(library, GPU_PLUGIN_SYMBOL);
    struct error err;
    if (!get || get()->n_ops != sizeof(struct backend_ops) || get()->version != GPU_PLUGIN_VERSION)
        return printf("Bail out! not a plugin of this version\n"), 1;
    *(void **)&graph_counts = dlsym(library, "gptqt_emu_graphs");
    if (get()->open(&be, 1, &err)) return printf("Bail out! %s\n", err.text), 1;
    ops_init_ref(&ref);
    bool good = run_parts(argc > 2 ? argv[2] : NULL);
    be->ops->close(be);
    return !good;
}
