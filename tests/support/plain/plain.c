/* Runs the tests of criterion.h beside this file one after the other and prints TAP. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/wait.h>
#include <unistd.h>

static struct plain_test *first, **last = &first;
static pthread_t main_thread;
static jmp_buf leave;
static bool failed;
static const char *skipped;
static char reason[256];

void plain_add(struct plain_test *test) {
    *last = test;
    last = &test->next;
}

void plain_check(bool good, bool fatal, const char *what, const char *file, int line,
                 const char *format, ...) {
    if (good) return;
    va_list args;
    va_start(args, format);
    printf("# %s:%d: %s ", file, line, what);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    if (!fatal) {
        failed = true;
        return;
    }
    if (!pthread_equal(pthread_self(), main_thread)) {
        puts("not ok - an assertion failed on a thread of the test");
        exit(EXIT_FAILURE);
    }
    failed = true;
    longjmp(leave, 1);
}

void plain_skip(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    skipped = reason;
    longjmp(leave, 1);
}

enum { PASSED, FAILED, SKIPPED };

/* In a child, so that a test finds everything as a new program does; the parent has one thread,
 * as ThreadSanitizer wants it. Exits normally: the sanitizer then gives its verdict. */
static int run(const struct plain_test *test) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        main_thread = pthread_self();
        if (!setjmp(leave)) {
            if (test->init) test->init();
            test->body();
        }
        if (!skipped && test->fini) test->fini();
        if (skipped) printf("ok - %s::%s # SKIP %s\n", test->suite, test->name, skipped);
        exit(skipped ? SKIPPED : failed ? FAILED : PASSED);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status)) return FAILED;
    int verdict = WEXITSTATUS(status);
    return verdict == PASSED || verdict == SKIPPED ? verdict : FAILED;
}

int main(void) {
    int n = 0, bad = 0;
    puts("TAP version 13");
    for (const struct plain_test *t = first; t; t = t->next) n++;
    printf("1..%d\n", n);
    for (const struct plain_test *t = first; t; t = t->next) {
        int verdict = run(t);
        bad += verdict == FAILED;
        if (verdict == SKIPPED) continue;
        printf("%s - %s::%s\n", verdict == FAILED ? "not ok" : "ok", t->suite, t->name);
    }
    return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}
