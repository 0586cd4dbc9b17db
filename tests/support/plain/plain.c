/* Runs the tests of criterion.h beside this file one after the other and prints TAP. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <setjmp.h>

static struct plain_test *first, **last = &first;
static pthread_t main_thread;
static jmp_buf leave;
static bool failed;
static const char *skipped;

void plain_add(struct plain_test *test) {
    *last = test;
    last = &test->next;
}

void plain_check(bool good, bool fatal, const char *what, const char *file, int line) {
    if (good) return;
    printf("# %s:%d: %s\n", file, line, what);
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

void plain_skip(const char *reason) {
    skipped = reason;
    longjmp(leave, 1);
}

static void run(const struct plain_test *test) {
    failed = false;
    skipped = NULL;
    if (!setjmp(leave)) {
        if (test->init) test->init();
        test->body();
    }
    if (!skipped && test->fini) test->fini();
    printf("%s - %s::%s%s%s\n", failed ? "not ok" : "ok", test->suite, test->name,
           skipped ? " # SKIP " : "", skipped ? skipped : "");
    fflush(stdout);
}

int main(void) {
    int n = 0, bad = 0;
    main_thread = pthread_self();
    puts("TAP version 13");
    for (const struct plain_test *t = first; t; t = t->next) n++;
    printf("1..%d\n", n);
    for (const struct plain_test *t = first; t; t = t->next) {
        run(t);
        bad += failed;
    }
    return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}
