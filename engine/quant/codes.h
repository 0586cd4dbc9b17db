/* codes.h - finds the codes of a strip of rows, given their levels, by the search that was asked.
 *
 * Owns      struct codes_saved until codes_saved_free().
 * Borrows   the strip during the call.
 * Thread    as strip.h.
 * Fails     codes_check() with -EINVAL, the others with -ENOMEM.
 * Cost      greedy: a comparison with each level; the rest one column loop, plus two for each sweep
 *           of descent, plus `beam` for a beam search.
 *
 * Each search but greedy starts from the column loop and keeps a row's codes only for better ones:
 * loss(beam), loss(cd) <= loss(gptq) in every row, up to rounding in fp32. */
#ifndef ENGINE_QUANT_CODES_H
#define ENGINE_QUANT_CODES_H

struct error;
struct strip;

enum codes_search {
    CODES_LOOP,    /* the column loop (GPTQ, arXiv 2210.17323) */
    CODES_GREEDY,  /* the nearest level, no feedback */
    CODES_DESCENT, /* then sweeps of coordinate descent */
    CODES_BEAM,    /* then beam.h, then sweeps */
    CODES_ADDITIVE /* then additive.h, which moves the levels as well; BCQ_FREE only */
};

struct codes_options {
    enum codes_search search;
    int beam; /* partial assignments kept for a row; 2..BEAM_MAX */
};

/* "gptq", "greedy", "cd", "beam", "additive"; NULL past the last. */
const char *codes_name(enum codes_search search);

int codes_check(const struct codes_options *o, struct error *err);

/* After strip_levels(): q, rank and code. */
int codes_find(struct strip *s, const struct codes_options *o, struct error *err);

/* The same for codes that are there, on levels that have changed since: rows keep the better. */
int codes_again(struct strip *s, const struct codes_options *o, struct error *err);

/* What a row's codes were, and the values of weights that have none, to go back to. */
struct codes_saved;
int codes_save(struct codes_saved **ret, const struct strip *s, struct error *err);
void codes_saved_free(struct codes_saved *saved); /* NULL is allowed */

/* One lane; strip_from_codes() is the caller's. */
void codes_restore(struct strip *s, const struct codes_saved *saved, int lane);

#endif
