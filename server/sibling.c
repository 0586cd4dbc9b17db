#include "server/sibling.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/cli.h"

int sibling_run(const char *name, char **argv) {
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    char *slash = NULL;
    if (n > 0) {
        path[n] = 0;
        slash = strrchr(path, '/');
    }
    size_t room = slash ? sizeof path - (size_t)(slash + 1 - path) : 0;
    char program[64];
    snprintf(program, sizeof program, "gptqt-%s", name);
    argv[0] = program;
    if (slash && (size_t)snprintf(slash + 1, room, "%s", program) < room) execv(path, argv);
    execvp(program, argv);
    fprintf(stderr, "gptqt: %s: %s\n", program, strerror(errno));
    return CLI_FAILED;
}
