/* tokenizer_build.h - what the readers and the writer of tokenizers share.
 *
 * Owns      a tokenizer under construction belongs to the reader that began it.
 * Borrows   a source's texts until tokenizer_build() returns.
 * Thread    one.
 * Fails     -ENOMEM, -EBADMSG, -ENOTSUP; the tokenizer is then only good for freeing.
 * Cost      O(n log n) in tokens and merges.
 *
 * Private to tokenizer*.c. A reader zeroes a struct tokenizer, adds the steps, fills in the
 * settings, then calls tokenizer_build(). The byte-level step is always there, and last. */
#ifndef ENGINE_TOKENIZER_BUILD_H
#define ENGINE_TOKENIZER_BUILD_H

#include "engine/added.h"
#include "engine/bpe.h"
#include "engine/tokenizer.h"
#include "engine/vocab.h"

struct pattern;

enum {
    TOKENIZER_MAX_STEPS = 8,   /* llama.cpp's "default" has 5, tokenizer.json files up to 4 */
    TOKENIZER_MAX_TEMPLATE = 8 /* ids before, and after, the text */
};

/* One stage of splitting; every piece that it makes goes on to the next stage. */
struct tokenizer_step {
    enum { STEP_SPLIT, STEP_DIGITS, STEP_BYTE_LEVEL } kind;
    struct pattern *pattern; /* NULL: does not split */
    char *source;            /* STEP_SPLIT: the pattern as the file has it */
    size_t n_source;
    bool literal;      /* STEP_SPLIT: a string, no regular expression */
    bool removed;      /* STEP_SPLIT: matches are dropped (with invert: what is between) */
    bool invert;       /* STEP_SPLIT */
    bool individual;   /* STEP_DIGITS: one by one */
    bool prefix_space; /* STEP_BYTE_LEVEL: a piece that does not begin with a space gets one */
};

struct tokenizer {
    bool nfc;
    struct tokenizer_step steps[TOKENIZER_MAX_STEPS];
    int n_steps;
    bool ignore_merges; /* a word that is a token is that token */
    int32_t prefix[TOKENIZER_MAX_TEMPLATE], suffix[TOKENIZER_MAX_TEMPLATE];
    int n_prefix, n_suffix;

    /* set by tokenizer_build() */
    struct vocab vocab;
    struct added added[2]; /* looked for in the raw text, in the normalized text */
    struct bpe bpe;
};

struct tokenizer_source {
    struct tokenizer_text *tokens; /* (n_ids) model entries; data NULL where there is none */
    size_t n_ids;                  /* highest id of both kinds + 1, up to VOCAB_MAX */
    struct added_token *added;     /* ids in [0, n_ids) */
    size_t n_added;
    struct tokenizer_text (*merges)[2]; /* (n_merges) left, right */
    size_t n_merges;
    struct tokenizer_text unk; /* data NULL: none */
    bool fuse_unk;
};

struct tokenizer_split {
    const char *text;
    size_t n;
    bool literal, removed, invert;
};

int tokenizer_add_split(struct tokenizer *t, const struct tokenizer_split *split,
                        struct error *err);
int tokenizer_add_digits(struct tokenizer *t, bool individual, struct error *err);
int tokenizer_add_byte_level(struct tokenizer *t, bool prefix_space, bool use_regex,
                             struct error *err);

/* The steps and settings that GGUF files call name; -ENOTSUP for a name that is not known. */
int tokenizer_add_named(struct tokenizer *t, const char *name, struct error *err);

/* The names, NULL past the last; of equal ones the first is llama.cpp's own. */
const char *tokenizer_pre_name(size_t i);

/* Cuts "left right" at its one space. */
int tokenizer_cut_merge(struct tokenizer_text ret[2], const char *text, size_t n, size_t index,
                        struct error *err);

int tokenizer_build(struct tokenizer *t, const struct tokenizer_source *source, struct error *err);

#endif
