#include <errno.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/rotation.h"

/* A basis serves every weight of its kind and order; it stays until the back end goes. */
struct cpu_basis {
    struct cpu_basis *next;
    enum rotation_basis basis;
    int order;
    float values[]; /* (2, order, order) B and its transpose */
};

static const struct cpu_basis *basis_of(struct cpu *cpu, const struct rotation *r) {
    for (const struct cpu_basis *b = cpu->bases; b; b = b->next)
        if (b->basis == r->basis && b->order == r->order) return b;
    size_t order = (size_t)r->order;
    struct rotation_plan plan;
    struct cpu_basis *b =
        memory_new(&cpu->memory, sizeof *b + 2 * order * order * sizeof *b->values);
    if (!b || rotation_plan_init(&plan, r, NULL) < 0) {
        memory_free(&cpu->memory, b);
        return NULL;
    }
    b->next = cpu->bases;
    b->basis = r->basis;
    b->order = r->order;
    for (size_t i = 0; plan.basis && i < order; i++)
        for (size_t j = 0; j < order; j++)
            b->values[i * order + j] = b->values[(order + j) * order + i] =
                (float)plan.basis[i * order + j];
    rotation_plan_free(&plan);
    cpu->bases = b;
    return b;
}

static size_t words(const struct rotation *r) { return ((size_t)r->n + 31) / 32; }

static int make_plan(struct cpu *cpu, struct rotate_plan *p, const struct rotation *r,
                     uint32_t *signs) {
    const struct cpu_basis *b = basis_of(cpu, r);
    if (!b) return -ENOMEM;
    int length = r->n / r->order;
    float scale = 1;
    /* Powers of two over odd powers of their root: exact to an ulp whatever the compiler does. */
    for (int n = length; n > 1; n /= 4) scale *= n == 2 ? 0.70710678f : 0.5f;
    memcpy(signs, r->signs, words(r) * sizeof *signs);
    *p = (struct rotate_plan){.n = r->n,
                              .order = r->order,
                              .length = length,
                              .scale = scale,
                              .basis = b->values,
                              .transposed = b->values + r->order * r->order,
                              .signs = signs};
    return 0;
}

int cpu_rotation_new(struct cpu *cpu, struct cpu_rotation **ret, const struct rotation_view *v) {
    size_t slice = CPU_SLICE * sizeof(float);
    size_t n_signs = words(&v->in) + words(&v->out);
    if (cpu_grow(cpu, &cpu->turned, &cpu->turned_bytes, slice * (size_t)v->in.n) ||
        cpu_grow(cpu, &cpu->unturned, &cpu->unturned_bytes, slice * (size_t)v->out.n))
        return -ENOMEM;
    struct cpu_rotation *r = memory_new(&cpu->memory, sizeof *r + n_signs * sizeof(uint32_t));
    if (!r) return -ENOMEM;
    int rc = make_plan(cpu, &r->in, &v->in, r->signs);
    if (rc == 0 && v->out.n) rc = make_plan(cpu, &r->out, &v->out, r->signs + words(&v->in));
    if (rc < 0)
        memory_free(&cpu->memory, r);
    else
        *ret = r;
    return rc;
}

bool cpu_rotation_shared(const struct cpu_rotation *a, const struct cpu_rotation *b) {
    if (!a || !b) return a == b;
    size_t n = ((size_t)a->in.n + 31) / 32;
    return a->in.n == b->in.n && a->in.basis == b->in.basis &&
           !memcmp(a->in.signs, b->in.signs, n * sizeof *a->in.signs);
}

struct turn_job {
    const struct rotate_plan *plan;
    float *dst;
    const float *src;
};

static void turn_rows(struct cpu *cpu, const void *arg, int thread, int row0, int row1) {
    const struct turn_job *job = arg;
    size_t n = (size_t)job->plan->n;
    for (int i = row0; i < row1; i++) {
        float *row = job->dst + (size_t)i * n;
        memcpy(row, job->src + (size_t)i * n, n * sizeof *row);
        cpu->ops.rotate(row, cpu->tmp + (size_t)thread * CPU_TMP, job->plan, false);
    }
}

const float *cpu_rotate_inputs(struct cpu *cpu, const struct cpu_rotation *r, const float *x,
                               int n) {
    struct turn_job job = {&r->in, cpu->turned, x};
    cpu_for_rows(cpu, n, (size_t)r->in.n * 8, turn_rows, &job);
    return cpu->turned;
}
