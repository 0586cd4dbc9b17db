#include "server/json_member.h"

#include <criterion/criterion.h>
#include <string.h>

static bool has(const char *text) { return json_member(text, strlen(text), "messages"); }

Test(json_member, members_of_the_outermost_object_are_found) {
    cr_expect(has("{\"messages\":[]}") && has(" { \"a\":{\"b\":[1]}, \"messages\" \n: 1}"));
    cr_expect(has("{\"a\":\"\\\"\",\"messages\":1"));
}

Test(json_member, others_are_not) {
    cr_expect(!has("") && !has("{}") && !has("{\"message\":1}") && !has("{\"messagess\":1}"));
    cr_expect(!has("{\"a\":\"messages\"}") && !has("{\"a\":{\"messages\":1}}"));
    cr_expect(!has("[\"messages\"]") && !has("{\"messages\"}") && !has("{\"messages"));
    cr_expect(!has("{\"a\":\"\\\",\\\"messages\\\":1\"}") && !has("\"messages\":1"));
}
