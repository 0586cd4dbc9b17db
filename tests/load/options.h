/* options.h - reads the flags of the load generator.
 *
 * Owns      the list of keys, until the process ends.
 * Borrows   argv, which the options point into.
 * Thread    one.
 * Fails     by ending the program with status 2 and a sentence.
 * Cost      none worth a word. */
#ifndef TESTS_LOAD_OPTIONS_H
#define TESTS_LOAD_OPTIONS_H

#include <netinet/in.h>
#include <stdbool.h>

#include "tests/load/cases.h"

struct options {
    struct sockaddr_in to;
    char host[64];
    struct cases_options cases;
    int clients, flood, idle, sources;
    double rate; /* questions a second; 0 = a closed loop */
    double seconds, warmup, ramp, pace, timeout;
    long requests; /* 0 = no limit */
    bool strict, patient, json, ids;
    enum { EXPECT_SERIAL, EXPECT_FIRST, EXPECT_NONE } expect;
    unsigned long seed;
    const char *raw;
    char **keys;
    int n_keys;
};

void options_read(struct options *o, int argc, char **argv);

#endif
