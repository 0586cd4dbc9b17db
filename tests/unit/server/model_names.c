#include "server/model_names.h"

#include <criterion/criterion.h>

Test(model_names, names_stand_between_commas) {
    static const char list[] = " a , org/b,,c d,";
    cr_expect(model_names_has(list, "a") && model_names_has(list, "org/b"));
    cr_expect(model_names_has(list, "c d"));
    cr_expect(!model_names_has(list, "") && !model_names_has(list, "c") &&
              !model_names_has(list, "b") && !model_names_has("", "a") &&
              !model_names_has(list, "a , org/b"));
    const char *at = list;
    size_t n;
    cr_expect(*model_names_next(&at, &n) == 'a' && n == 1);
}
