/* budget.h - says where the memory of a server goes, before any of it is taken.
 *
 * Owns      nothing.
 * Borrows   its arguments during the call.
 * Thread    any; pure.
 * Fails     -EINVAL when the limit leaves nothing for the model; the text has the sums.
 * Cost      arithmetic.
 *
 * Each part of the server has a bound of its own that is kept while it runs: connections have
 * their number, bodies and streams a sum, parsers a quota. With a limit, bodies and streams
 * get a sixteenth of it each, if that is less than what they may have otherwise, and the engine
 * gets the rest. */
#ifndef SERVER_BUDGET_H
#define SERVER_BUDGET_H

#include <stdint.h>

struct error;

enum budget_part {
    BUDGET_PROGRAM,     /* code, libraries, tables, stacks */
    BUDGET_CONNECTIONS, /* what each costs, with its request */
    BUDGET_UPLOADS,     /* bodies and the prompts made of them */
    BUDGET_PARSING,     /* trees of values, while they are read */
    BUDGET_STREAMS,     /* text that clients have not read yet */
    BUDGET_PARTS
};

struct budget_facts {
    int64_t limit;                      /* 0 = none */
    int64_t connections, uploads, body; /* the most of them; bytes of all bodies, of one */
    int64_t running;                    /* sequences */
    int parsers;                        /* at a time */
};

struct budget {
    int64_t parts[BUDGET_PARTS];
    int64_t server; /* all of them */
    int64_t engine; /* what is left of the limit; 0 = no limit */
};

int budget_plan(struct budget *ret, const struct budget_facts *facts, struct error *err);

const char *budget_part_name(enum budget_part part);

#endif
