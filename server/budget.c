#include "server/budget.h"

#include <errno.h>

#include "kernels/error.h"
#include "server/api/openai_parse.h"
#include "server/http.h"

enum {
    PROGRAM = 16 << 20,
    CONNECTION = 40 << 10, /* libmicrohttpd's 32 KiB, our structs, and the kernel's share of them */
    SHARE = 16             /* of the limit, for bodies and for streams */
};

const char *budget_part_name(enum budget_part part) {
    static const char *const names[] = {"program", "connections", "uploads", "parsing", "streams"};
    return names[part];
}

/* wanted, but not more than the share of a limit, or what one thing needs if that is more. */
static int64_t portion(int64_t wanted, int64_t limit, int64_t one) {
    int64_t most = limit / SHARE > one ? limit / SHARE : one;
    return limit && wanted > most ? most : wanted;
}

static double mib(int64_t bytes) { return (double)bytes / 1048576; }

int budget_plan(struct budget *ret, const struct budget_facts *f, struct error *err) {
    struct budget b = {
        .parts = {
            [BUDGET_PROGRAM] = PROGRAM,
            [BUDGET_CONNECTIONS] = f->connections * CONNECTION,
            [BUDGET_UPLOADS] = portion(f->uploads, f->limit, f->body),
            [BUDGET_PARSING] = (int64_t)f->parsers * OPENAI_MAX_HEAP,
            [BUDGET_STREAMS] = portion(f->running * HTTP_QUEUE_LIMIT, f->limit, HTTP_QUEUE_LIMIT),
        }};
    for (int i = 0; i < BUDGET_PARTS; i++) b.server += b.parts[i];
    if (f->limit) {
        b.engine = f->limit - b.server;
        if (b.engine <= 0)
            return error_set(
                err, -EINVAL,
                "memory-limit: %.1f MiB, but the server takes %.1f MiB without a model: program "
                "%.1f, connections %.1f (max-connections), uploads %.1f (max-body), parsing %.1f, "
                "streams %.1f",
                mib(f->limit), mib(b.server), mib(b.parts[0]), mib(b.parts[1]), mib(b.parts[2]),
                mib(b.parts[3]), mib(b.parts[4]));
    }
    *ret = b;
    return 0;
}
