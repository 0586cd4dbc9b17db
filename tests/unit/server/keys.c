#include "server/keys.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

static struct keys *parsed(const char *text) {
    struct keys *keys = NULL;
    struct error err;
    cr_assert(keys_parse(&keys, text, strlen(text), "f", &err) == 0, "%s", err.text);
    return keys;
}

static int found(const struct keys *keys, const char *shown) {
    return keys_find(keys, shown, strlen(shown));
}

Test(keys, lines_comments_and_options_are_read) {
    struct keys *keys =
        parsed("# people\n\n  ann  sk-ann weight=2.5 concurrency=3 # she\r\n"
               "bob\tsha256:" ABC " tokens-per-minute=1000 requests-per-minute=60 priority=-2\n"
               "c.-_1 last");
    cr_assert(keys->n == 3);
    const struct key *ann = &keys->list[0], *bob = &keys->list[1];
    cr_expect(!strcmp(ann->name, "ann") && ann->weight > 2.4f && ann->limits.concurrency == 3);
    cr_expect(ann->limits.tokens == 0 && ann->limits.requests == 0 && ann->priority == 0);
    cr_expect(bob->limits.tokens == 1000 && bob->limits.requests == 60 && bob->priority == -2);
    cr_expect(found(keys, "sk-ann") == 0 && found(keys, "abc") == 1 && found(keys, "last") == 2);
    keys_free(keys);
}

Test(keys, only_whole_keys_are_found) {
    struct keys *keys = parsed("a secret\n");
    char longest[KEYS_MAX_SECRET + 2];
    memset(longest, 's', sizeof longest);
    cr_expect(found(keys, "secre") < 0 && found(keys, "secrets") < 0 && found(keys, "") < 0);
    cr_expect(found(keys, "Secret") < 0 && keys_find(keys, longest, sizeof longest) < 0);
    cr_expect(keys_find(keys, "secret\0x", 8) < 0);
    keys_free(keys);
}

Test(keys, a_digest_is_no_key) {
    struct keys *keys = parsed("a sha256:" ABC "\n");
    cr_expect(found(keys, ABC) < 0 && found(keys, "sha256:" ABC) < 0);
    keys_free(keys);
}

Test(keys, upper_case_digests_are_the_same) {
    struct keys *keys =
        parsed("a sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD");
    cr_expect(found(keys, "abc") == 0);
    keys_free(keys);
}

Test(keys, errors_name_file_line_and_word) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "f: there is no key"},
        {"# nothing\n", "f: there is no key"},
        {"a\n", "f:1: there is no key after the name"},
        {"a # b\n", "f:1: there is no key after the name"},
        {"\n\na!b key\n", "f:3: a name is"},
        {"a key\na other\n", "f:2: the second key called 'a'"},
        {"a key\nb key\n", "f:2: the same key as that of 'a'"},
        {"a sha256:12\n", "f:1: sha256: wants 64"},
        {"a sha256:" ABC "0\n", "f:1: sha256: wants 64"},
        {"a k weigth=2\n", "f:1: there is no option 'weigth'"},
        {"a k weight\n", "f:1: an option is name=value, not 'weight'"},
        {"a k weight=1 weight=1\n", "f:1: given twice: 'weight'"},
        {"a k weight=0\n", "f:1: weight must be in 0.001..1000, not '0'"},
        {"a k weight=nan\n", "f:1: weight must be in"},
        {"a k weight=1e9\n", "f:1: weight must be in"},
        {"a k concurrency=0\n", "f:1: concurrency must be in 1..1000000, not '0'"},
        {"a k concurrency=\n", "f:1: concurrency must be in"},
        {"a k concurrency=1x\n", "f:1: concurrency must be in"},
        {"a k tokens-per-minute=99999999999999999999\n", "f:1: tokens-per-minute must be in"},
        {"a k requests-per-minute=-1\n", "f:1: requests-per-minute must be in"},
        {"a k priority=1000001\n", "f:1: priority must be in"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct keys *keys = NULL;
        struct error err;
        int r = keys_parse(&keys, cases[i].text, strlen(cases[i].text), "f", &err);
        cr_expect(r < 0 && !keys && !strncmp(err.text, cases[i].message, strlen(cases[i].message)),
                  "'%s' gave '%s'", cases[i].text, err.text);
        keys_free(keys);
    }
}

Test(keys, hostile_lines_are_refused) {
    char line[2000];
    struct keys *keys = NULL;
    struct error err;
    memset(line, 'a', sizeof line);
    cr_expect(keys_parse(&keys, line, sizeof line, "f", &err) < 0 && strstr(err.text, "longer"));
    cr_expect(keys_parse(&keys, "a k\0ey\n", 7, "f", &err) < 0 && strstr(err.text, "byte 0"));
    line[1] = ' ';
    cr_expect(keys_parse(&keys, line, 900, "f", &err) < 0 && strstr(err.text, "512 bytes"));
}

Test(keys, there_is_a_limit) {
    size_t size = (KEYS_MAX + 1) * 16, n = 0;
    char *text = malloc(size);
    struct keys *keys = NULL;
    struct error err;
    for (int i = 0; i < KEYS_MAX; i++) n += (size_t)snprintf(text + n, size - n, "n%d k%d\n", i, i);
    cr_assert(keys_parse(&keys, text, n, "f", &err) == 0 && keys->n == KEYS_MAX);
    cr_expect(found(keys, "k999") == 999);
    keys_free(keys);
    keys = NULL;
    n += (size_t)snprintf(text + n, size - n, "n%d k%d\n", KEYS_MAX, KEYS_MAX);
    cr_expect(keys_parse(&keys, text, n, "f", &err) < 0 && strstr(err.text, "f:1001:"));
    free(text);
}

Test(keys, one_key_needs_no_file) {
    struct keys *keys = NULL;
    struct error err;
    cr_assert(keys_parse_with(&keys, NULL, 0, NULL, "top", &err) == 0 && keys->n == 1);
    cr_expect(found(keys, "top") == 0 && !strcmp(keys->list[0].name, "default"));
    keys_free(keys);
    keys = NULL;
    cr_assert(keys_parse_with(&keys, "a b", 3, "f", "b", &err) < 0);
    cr_expect(strstr(err.text, "--api-key"));
}
