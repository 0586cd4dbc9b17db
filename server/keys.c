#include "server/keys.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/error.h"

enum { MAX_LINE = 1024 };

void keys_digest(char ret[SHA256_HEX], const char *secret, size_t n) {
    struct sha256 s;
    sha256_init(&s);
    sha256_add(&s, secret, n);
    sha256_end(&s, ret);
}

/* A compiler may leave out a memset() of what is not read again. */
void keys_wipe(void *bytes, size_t n) {
    volatile char *p = bytes;
    while (n--) *p++ = 0;
}

/* -- One line ------------------------------------------------------------------------------ */

struct place { /* where it is being read */
    const char *file;
    int line;
    struct error *err;
};

static int bad(const struct place *at, const char *what, const char *word) {
    return error_set(at->err, -EINVAL, "%s:%d: %s%s%.40s%s", at->file, at->line, what,
                     word ? " '" : "", word ? word : "", word ? "'" : "");
}

/* The names of keys go into log lines and labels. */
static bool is_name(const char *word) {
    size_t n = strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");
    return n > 0 && n <= KEYS_MAX_NAME && !word[n];
}

static int set_secret(struct key *key, const char *word, const struct place *at) {
    static const char prefix[] = "sha256:";
    size_t n = strlen(word), n_prefix = sizeof prefix - 1;
    if (strncmp(word, prefix, n_prefix) != 0) {
        if (n > KEYS_MAX_SECRET) return bad(at, "the key is longer than 512 bytes", NULL);
        keys_digest(key->digest, word, n);
        return 0;
    }
    word += n_prefix;
    if (strspn(word, "0123456789abcdefABCDEF") != SHA256_HEX - 1 || word[SHA256_HEX - 1])
        return bad(at, "sha256: wants 64 hexadecimal digits", NULL);
    for (int i = 0; i < SHA256_HEX; i++) key->digest[i] = (char)tolower((unsigned char)word[i]);
    return 0;
}

static int read_whole(int64_t *ret, const char *word, int64_t min, int64_t max) {
    char *end;
    errno = 0;
    long long number = strtoll(word, &end, 10);
    if (errno || end == word || *end || isspace((unsigned char)*word)) return -EINVAL;
    if (number < min || number > max) return -ERANGE;
    *ret = number;
    return 0;
}

static int read_weight(float *ret, const char *word) {
    char *end;
    if (!isdigit((unsigned char)*word)) return -EINVAL;
    double number = strtod(word, &end);
    if (*end) return -EINVAL;
    if (!(number >= 0.001 && number <= 1000)) return -ERANGE;
    *ret = (float)number;
    return 0;
}

static const struct option {
    const char *name, *range;
    int64_t min, max;
} options[] = {
    {"weight", "0.001..1000", 0, 0},
    {"concurrency", "1..1000000", 1, 1000000},
    {"tokens-per-minute", "1..1000000000000", 1, 1000000000000},
    {"requests-per-minute", "1..1000000000", 1, 1000000000},
    {"priority", "-1000000..1000000", -1000000, 1000000},
};

static int read_option(struct key *key, int option, const char *value) {
    int64_t number = 0;
    if (option == 0) return read_weight(&key->weight, value);
    int r = read_whole(&number, value, options[option].min, options[option].max);
    if (r < 0) return r;
    if (option == 1) key->limits.concurrency = (int)number;
    if (option == 2) key->limits.tokens = number;
    if (option == 3) key->limits.requests = number;
    if (option == 4) key->priority = (int)number;
    return 0;
}

static int set_option(struct key *key, unsigned *seen, char *word, const struct place *at) {
    enum { N_OPTIONS = sizeof options / sizeof *options };
    char *value = strchr(word, '=');
    int i = 0;
    if (!value) return bad(at, "an option is name=value, not", word);
    *value++ = 0;
    while (i < N_OPTIONS && strcmp(word, options[i].name) != 0) i++;
    if (i == N_OPTIONS) return bad(at, "there is no option", word);
    if (*seen & 1u << i) return bad(at, "given twice:", word);
    *seen |= 1u << i;
    if (read_option(key, i, value) == 0) return 0;
    char what[96];
    snprintf(what, sizeof what, "%s must be in %s, not", word, options[i].range);
    return bad(at, what, value);
}

/* Returns 1 for a key, 0 for an empty line. The line is written into. */
static int read_line(struct key *key, char *line, const struct place *at) {
    static const char blanks[] = " \t\r";
    unsigned seen = 0;
    char *rest, *word = strtok_r(line, blanks, &rest);
    if (!word || *word == '#') return 0;
    *key = (struct key){.weight = 1};
    if (!is_name(word)) return bad(at, "a name is 1 to 63 letters, digits and -_. , not", word);
    memcpy(key->name, word, strlen(word) + 1);
    word = strtok_r(NULL, blanks, &rest);
    if (!word || *word == '#') return bad(at, "there is no key after the name", key->name);
    int r = set_secret(key, word, at);
    while (r == 0 && (word = strtok_r(NULL, blanks, &rest)) && *word != '#')
        r = set_option(key, &seen, word, at);
    return r < 0 ? r : 1;
}

/* -- All of them --------------------------------------------------------------------------- */

static int add(struct keys *keys, const struct key *key, const struct place *at) {
    for (int i = 0; i < keys->n; i++) {
        if (!strcmp(keys->list[i].name, key->name))
            return bad(at, "the second key called", key->name);
        if (!strcmp(keys->list[i].digest, key->digest))
            return bad(at, "the same key as that of", keys->list[i].name);
    }
    if (keys->n == KEYS_MAX) return bad(at, "there may be 1000 keys", NULL);
    /* Doubling at powers of two needs no field for the size. */
    if ((keys->n & (keys->n - 1)) == 0) {
        size_t room = keys->n ? 2 * (size_t)keys->n : 1;
        struct key *list = realloc(keys->list, room * sizeof *list);
        if (!list) return error_set(at->err, -ENOMEM, "keys: out of memory");
        keys->list = list;
    }
    keys->list[keys->n++] = *key;
    return 0;
}

static int add_line(struct keys *keys, const char *bytes, size_t n, const struct place *at) {
    char line[MAX_LINE];
    struct key key;
    if (n >= sizeof line) return bad(at, "the line is longer than 1023 bytes", NULL);
    if (memchr(bytes, 0, n)) return bad(at, "the line has a byte 0", NULL);
    memcpy(line, bytes, n);
    line[n] = 0;
    int r = read_line(&key, line, at);
    /* The key itself does not stay on the stack. */
    keys_wipe(line, sizeof line);
    return r > 0 ? add(keys, &key, at) : r;
}

static int add_lines(struct keys *keys, const char *text, size_t n, struct place *at) {
    int r = 0;
    for (const char *end = text + n; r == 0 && text < end; at->line++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        if (!stop) stop = end;
        r = add_line(keys, text, (size_t)(stop - text), at);
        text = stop < end ? stop + 1 : end;
    }
    return r;
}

int keys_parse_with(struct keys **ret, const char *text, size_t n, const char *name,
                    const char *secret, struct error *err) {
    struct place at = {name, 1, err};
    struct keys *keys = calloc(1, sizeof *keys);
    if (!keys) return error_set(err, -ENOMEM, "keys: out of memory");
    int r = text ? add_lines(keys, text, n, &at) : 0;
    if (r == 0 && secret) {
        struct key key = {.name = "default", .weight = 1};
        keys_digest(key.digest, secret, strlen(secret));
        at = (struct place){"--api-key", 1, err};
        r = add(keys, &key, &at);
    }
    if (r == 0 && !keys->n) r = error_set(err, -EINVAL, "%s: there is no key in it", name);
    if (r < 0) {
        keys_free(keys);
        return r;
    }
    *ret = keys;
    return 0;
}

int keys_parse(struct keys **ret, const char *text, size_t n, const char *name, struct error *err) {
    return keys_parse_with(ret, text, n, name, NULL, err);
}

void keys_free(struct keys *keys) {
    if (!keys) return;
    free(keys->list);
    free(keys);
}

int keys_find(const struct keys *keys, const char *shown, size_t n) {
    char digest[SHA256_HEX];
    int found = -1;
    if (n > KEYS_MAX_SECRET) return -1;
    keys_digest(digest, shown, n);
    for (int i = 0; i < keys->n; i++) {
        unsigned difference = 0;
        for (int k = 0; k < SHA256_HEX; k++)
            difference |= (unsigned)(digest[k] ^ keys->list[i].digest[k]);
        if (!difference) found = i;
    }
    return found;
}
