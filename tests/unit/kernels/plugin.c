/* Which library a name opens, and what is said when that cannot be. The emulated GPU, under the
 * name of the real one, stands for a machine that has a device or has none. */
#include "kernels/plugin.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "kernels/error.h"
#include "tests/support/scratch.h"

struct shelf {
    char folder[SCRATCH_PATH], library[SCRATCH_PATH];
    struct error err;
    struct backend *be;
};

/* A folder of plugins in which libgptqt-cuda.so is the library that the variable names. */
static void open_shelf(struct shelf *s, const char *variable) {
    *s = (struct shelf){0};
    scratch_make(s->folder);
    scratch_join(s->library, s->folder, "libgptqt-cuda.so");
    if (variable) {
        cr_assert_not_null(getenv(variable));
        cr_assert_eq(symlink(getenv(variable), s->library), 0);
    }
    cr_assert_eq(setenv("GPTQT_PLUGIN_DIR", s->folder, 1), 0);
}

static void close_shelf(struct shelf *s) {
    backend_close(s->be);
    scratch_remove(s->folder);
    unsetenv("GPTQT_PLUGIN_DIR");
    unsetenv("GPTQT_EMU_DEVICES");
}

static int open_name(struct shelf *s, const char *name) {
    struct backend_options options = {.name = name, .n_threads = 1};
    s->err.text[0] = '\0';
    return backend_open(&s->be, &options, &s->err);
}

static bool says(const struct shelf *s, const char *a, const char *b) {
    return strstr(s->err.text, a) && strstr(s->err.text, b);
}

Test(plugin, unknown_names_list_what_there_is) {
    struct shelf s;
    open_shelf(&s, NULL);
    cr_expect_eq(open_name(&s, "vulkan"), -ENODEV);
    cr_expect(says(&s, "vulkan", "auto, cpu, cuda, cuda-emu"), "%s", s.err.text);
    cr_expect_null(s.be);
    close_shelf(&s);
}

Test(plugin, without_a_library_cuda_is_an_error_and_auto_the_cpu) {
    struct shelf s;
    open_shelf(&s, NULL);
    cr_expect_eq(open_name(&s, "cuda"), -ENODEV);
    cr_expect(says(&s, "libgptqt-cuda.so", s.folder), "%s", s.err.text);
    cr_expect_null(s.be);
    cr_assert_eq(open_name(&s, "auto"), 0, "%s", s.err.text);
    cr_expect_str_eq(s.be->name, "cpu");
    cr_expect(strstr(s.be->note, "libgptqt-cuda.so"), "%s", s.be->note);
    close_shelf(&s);
}

Test(plugin, without_a_device_cuda_is_an_error_and_auto_the_cpu) {
    struct shelf s;
    open_shelf(&s, "GPTQT_EMULATION");
    cr_assert_eq(setenv("GPTQT_EMU_DEVICES", "0", 1), 0);
    cr_expect_eq(open_name(&s, "cuda"), -ENODEV);
    cr_expect(says(&s, "back end cuda", "no GPU"), "%s", s.err.text);
    cr_assert_eq(open_name(&s, "auto"), 0, "%s", s.err.text);
    cr_expect_str_eq(s.be->name, "cpu");
    cr_expect(strstr(s.be->note, "no CUDA-capable device"), "%s", s.be->note);
    close_shelf(&s);
}

Test(plugin, auto_takes_a_device_that_is_there) {
    struct shelf s;
    open_shelf(&s, "GPTQT_EMULATION");
    cr_assert_eq(open_name(&s, "auto"), 0, "%s", s.err.text);
    cr_expect_str_eq(s.be->name, "cuda-emu");
    cr_expect_str_empty(s.be->note);
    cr_expect(strstr(s.be->detail, "emulated"), "%s", s.be->detail);
    close_shelf(&s);
}

Test(plugin, the_cpu_needs_no_library_and_has_nothing_to_excuse) {
    struct shelf s;
    open_shelf(&s, "GPTQT_STRANGER");
    cr_assert_eq(open_name(&s, "cpu"), 0, "%s", s.err.text);
    cr_expect_str_empty(s.be->note);
    close_shelf(&s);
}

Test(plugin, libraries_of_another_build_and_no_libraries_are_refused) {
    struct shelf s;
    open_shelf(&s, "GPTQT_STRANGER");
    cr_expect_eq(open_name(&s, "cuda"), -ENODEV);
    cr_expect(says(&s, s.library, "another build"), "%s", s.err.text);
    close_shelf(&s);
    open_shelf(&s, NULL);
    scratch_save(s.library, "not a library", 13);
    cr_expect_eq(open_name(&s, "cuda"), -ENODEV);
    cr_expect(says(&s, "libgptqt-cuda.so", "file too short"), "%s", s.err.text);
    close_shelf(&s);
    open_shelf(&s, "PWD"); /* a folder */
    cr_expect_eq(open_name(&s, "cuda"), -ENODEV);
    close_shelf(&s);
}
