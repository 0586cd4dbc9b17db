#include <criterion/criterion.h>

#include "tests/support/desk.h"
#include "tests/support/fake_model.h"
#include "tests/support/tiny_source.h"

void desk_open(struct desk *d, const struct engine_options *options, int context,
               bool with_tokenizer) {
    desk_open_source(d, options, tiny_source_open(context, with_tokenizer));
}

void desk_close(struct desk *d) {
    desk_close_source(d);
    cr_expect(fake_model_all_closed());
}
