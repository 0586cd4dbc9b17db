#include "engine/chat.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/utf8.h"
#include "kernels/error.h"

enum {
    CHAT_MAX_TEMPLATE = 1 << 20, /* bytes; the longest in use have 20 thousand */
    CHAT_MAX_ROLE = 32
};

enum form { FORM_CHATML, FORM_LLAMA2, FORM_LLAMA3 };

struct chat_template {
    enum form form;
    bool has_bos;         /* the prompt begins with it */
    char *default_system; /* ChatML: for chats without a system message; NULL: none */
    char *preamble;       /* Llama 3: what every system message begins with; NULL: the message
                             is like all others */
};

struct rendering {
    const struct chat_prompt *prompt;
    struct buf *out;
    int status; /* the first error of the output; the writers go on and it is asked for once */
};

static const char *find(const char *text, size_t n, const char *what) {
    size_t len = strlen(what);
    for (const char *end = text + n; (size_t)(end - text) >= len; text++) {
        text = memchr(text, what[0], (size_t)(end - text) - len + 1);
        if (!text) return NULL;
        if (memcmp(text, what, len) == 0) return text;
    }
    return NULL;
}

/* A line break of a template's string: the character, or its escape. */
static size_t line_break(const char *text, const char *end) {
    if (text < end && text[0] == '\n') return 1;
    return end - text >= 2 && text[0] == '\\' && text[1] == 'n' ? 2 : 0;
}

/* Copies template text in which \n and \' are escapes. */
static char *unescape(const char *text, size_t n) {
    char *copy = malloc(n + 1), *at = copy;
    if (!copy) return NULL;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\\' && i + 1 < n) {
            i++;
            *at++ = text[i] == 'n' ? '\n' : text[i] == 't' ? '\t' : text[i];
        } else {
            *at++ = text[i];
        }
    }
    *at = '\0';
    return copy;
}

/* A system message that is spelled out between its markers, in one string of the template. */
static int read_default_system(struct chat_template *t, const char *text, size_t n) {
    static const char before[] = "<|im_start|>system", after[] = "<|im_end|>";
    const char *end = text + n;
    while ((text = find(text, (size_t)(end - text), before))) {
        text += sizeof before - 1;
        size_t gap = line_break(text, end);
        if (!gap) continue;
        text += gap;
        const char *stop = find(text, (size_t)(end - text), after), *c = text;
        if (!stop) return 0;
        /* An unescaped quote ends the string, a brace makes it no longer a literal. */
        while (c < stop && !strchr("'\"{}", *c)) c += *c == '\\' && c + 1 < stop ? 2 : 1;
        if (c < stop) continue;
        t->default_system = unescape(text, (size_t)(stop - text));
        return t->default_system ? 0 : -ENOMEM;
    }
    return 0;
}

/* Llama 3.1 and later put two dates before every system message. The template may ask for the
 * present day; its own fallback is used, so that equal chats give equal prompts. */
static int read_preamble(struct chat_template *t, const char *text, size_t n) {
    static const char knowledge[] = "Cutting Knowledge Date: ", today[] = "date_string = \"";
    const char *end = text + n, *k = find(text, n, knowledge), *d = find(text, n, today);
    if (!k || !d) return 0;
    size_t n_k = sizeof knowledge - 1, n_d = 0;
    while (k + n_k < end && (isalnum((unsigned char)k[n_k]) || k[n_k] == ' ')) n_k++;
    d += sizeof today - 1;
    while (d + n_d < end && (isalnum((unsigned char)d[n_d]) || d[n_d] == ' ')) n_d++;
    struct buf b = {0};
    int r = buf_printf(&b, "%.*s\nToday Date: %.*s\n\n", (int)n_k, k, (int)n_d, d);
    if (r < 0)
        buf_free(&b);
    else
        t->preamble = b.data;
    return r;
}

/* Whether the answer begins with a thought that the template opens itself. */
static bool opens_thought(const char *text, size_t n) {
    static const char answer[] = "<|im_start|>assistant", thought[] = "<think>";
    const char *end = text + n;
    while ((text = find(text, (size_t)(end - text), answer))) {
        text += sizeof answer - 1;
        size_t gap = line_break(text, end), left = (size_t)(end - text) - gap;
        if (gap && left >= sizeof thought - 1 &&
            memcmp(text + gap, thought, sizeof thought - 1) == 0)
            return true;
    }
    return false;
}

static int recognise(struct chat_template *t, const char *text, size_t n, struct error *err) {
    t->has_bos = find(text, n, "bos_token") != NULL;
    if (find(text, n, "<|im_start|>") && !find(text, n, "<|im_sep|>") && !opens_thought(text, n)) {
        t->form = FORM_CHATML;
        return read_default_system(t, text, n);
    }
    if (find(text, n, "<|start_header_id|>") && find(text, n, "<|eot_id|>")) {
        t->form = FORM_LLAMA3;
        return read_preamble(t, text, n);
    }
    if (find(text, n, "[INST]") && find(text, n, "<<SYS>>")) {
        t->form = FORM_LLAMA2;
        return 0;
    }
    return error_set(err, -ENOTSUP,
                     "chat_template: not one of the supported forms: ChatML (<|im_start|>), "
                     "Llama 2 ([INST] with <<SYS>>), Llama 3 (<|start_header_id|>)");
}

int chat_template_new(struct chat_template **ret, const char *text, size_t n, struct error *err) {
    if (n > CHAT_MAX_TEMPLATE)
        return error_set(err, -ENOTSUP, "chat_template: %zu bytes, limit %d", n, CHAT_MAX_TEMPLATE);
    struct chat_template *t = calloc(1, sizeof *t);
    int r = t ? recognise(t, text, n, err) : -ENOMEM;
    if (r == -ENOMEM) error_set(err, r, "chat_template: out of memory");
    if (r == 0) {
        *ret = t;
        t = NULL;
    }
    chat_template_free(t);
    return r;
}

void chat_template_free(struct chat_template *t) {
    if (!t) return;
    free(t->default_system);
    free(t->preamble);
    free(t);
}

const char *chat_template_form(const struct chat_template *t) {
    static const char *const names[] = {"ChatML", "Llama 2", "Llama 3"};
    return names[t->form];
}

bool chat_template_has_bos(const struct chat_template *t) { return t->has_bos; }

static void put_bytes(struct rendering *r, const char *text, size_t n) {
    if (r->status == 0) r->status = buf_append(r->out, text, n);
}

static void put(struct rendering *r, const char *text) {
    if (text) put_bytes(r, text, strlen(text));
}

static void put_trimmed(struct rendering *r, const char *text, size_t n) {
    utf8_trim(&text, &n);
    put_bytes(r, text, n);
}

static bool has_role(const struct chat_message *m, const char *role) {
    return m->role_len == strlen(role) && memcmp(m->role, role, m->role_len) == 0;
}

/* Roles go into the prompt between markers, so they may be words only. */
static int check_roles(const struct chat_prompt *prompt, struct error *err) {
    if (prompt->n_messages == 0) return error_set(err, -EINVAL, "messages: there are none");
    for (size_t i = 0; i < prompt->n_messages; i++) {
        const struct chat_message *m = &prompt->messages[i];
        bool ok = m->role_len > 0 && m->role_len <= CHAT_MAX_ROLE;
        for (size_t k = 0; ok && k < m->role_len; k++)
            ok = isalnum((unsigned char)m->role[k]) || m->role[k] == '_' || m->role[k] == '-';
        if (!ok)
            return error_set(err, -EINVAL,
                             "messages[%zu].role: not 1 to %d letters, digits, '_', "
                             "'-'",
                             i, CHAT_MAX_ROLE);
        if (has_role(m, "tool") || has_role(m, "function") || has_role(m, "ipython"))
            return error_set(err, -EINVAL, "messages[%zu].role: '%.*s' is not supported", i,
                             (int)m->role_len, m->role);
    }
    return 0;
}

static void render_chatml(const struct chat_template *t, struct rendering *r) {
    const struct chat_prompt *p = r->prompt;
    if (t->has_bos) put(r, p->bos);
    if (t->default_system && !has_role(&p->messages[0], "system")) {
        put(r, "<|im_start|>system\n");
        put(r, t->default_system);
        put(r, "<|im_end|>\n");
    }
    for (size_t i = 0; i < p->n_messages; i++) {
        const struct chat_message *m = &p->messages[i];
        put(r, "<|im_start|>");
        put_bytes(r, m->role, m->role_len);
        put(r, "\n");
        put_bytes(r, m->content, m->content_len);
        put(r, "<|im_end|>\n");
    }
    if (p->add_generation_prompt) put(r, "<|im_start|>assistant\n");
}

static void put_header(struct rendering *r, const char *role, size_t n) {
    put(r, "<|start_header_id|>");
    put_bytes(r, role, n);
    put(r, "<|end_header_id|>\n\n");
}

static void render_llama3(const struct chat_template *t, struct rendering *r) {
    const struct chat_prompt *p = r->prompt;
    const struct chat_message *m = p->messages, *end = m + p->n_messages;
    if (t->has_bos) put(r, p->bos);
    if (t->preamble) {
        put_header(r, "system", 6);
        put(r, t->preamble);
        if (has_role(m, "system")) {
            put_trimmed(r, m->content, m->content_len);
            m++;
        }
        put(r, "<|eot_id|>");
    }
    for (; m < end; m++) {
        put_header(r, m->role, m->role_len);
        put_trimmed(r, m->content, m->content_len);
        put(r, "<|eot_id|>");
    }
    if (p->add_generation_prompt) put_header(r, "assistant", 9);
}

/* The turn of the user that a system message belongs to holds both, trimmed together. */
static void put_instruction(struct rendering *r, const struct chat_message *system,
                            const struct chat_message *user) {
    struct buf text = {0};
    struct rendering inner = {.prompt = r->prompt, .out = &text};
    if (system) {
        put(&inner, "<<SYS>>\n");
        put_bytes(&inner, system->content, system->content_len);
        put(&inner, "\n<</SYS>>\n\n");
    }
    put_bytes(&inner, user->content, user->content_len);
    put(r, "[INST] ");
    put_trimmed(r, text.data, text.len);
    put(r, " [/INST]");
    if (r->status == 0) r->status = inner.status;
    buf_free(&text);
}

static int render_llama2(const struct chat_template *t, struct rendering *r, struct error *err) {
    const struct chat_prompt *p = r->prompt;
    const struct chat_message *system = has_role(&p->messages[0], "system") ? p->messages : NULL;
    size_t first = system ? 1 : 0;
    if (first == p->n_messages) return error_set(err, -EINVAL, "messages: no user message");
    for (size_t i = first; i < p->n_messages; i++) {
        const struct chat_message *m = &p->messages[i];
        bool users_turn = (i - first) % 2 == 0;
        if (!has_role(m, users_turn ? "user" : "assistant"))
            return error_set(err, -EINVAL,
                             "messages[%zu].role: roles must alternate user/assistant, after at "
                             "most one system message",
                             i);
        if (users_turn) {
            if (t->has_bos) put(r, p->bos);
            put_instruction(r, i == first ? system : NULL, m);
        } else {
            put(r, " ");
            put_trimmed(r, m->content, m->content_len);
            put(r, " ");
            put(r, p->eos);
        }
    }
    return 0;
}

int chat_render(const struct chat_template *t, const struct chat_prompt *prompt, struct buf *out,
                struct error *err) {
    struct rendering rendering = {.prompt = prompt, .out = out};
    int r = check_roles(prompt, err);
    if (r < 0) return r;
    size_t before = out->len;
    switch (t->form) {
    case FORM_CHATML:
        render_chatml(t, &rendering);
        break;
    case FORM_LLAMA2:
        r = render_llama2(t, &rendering, err);
        break;
    case FORM_LLAMA3:
        render_llama3(t, &rendering);
        break;
    }
    if (r == 0 && rendering.status < 0) r = error_set(err, rendering.status, "chat: out of memory");
    if (r < 0 && out->data) {
        out->len = before;
        out->data[before] = '\0';
    }
    return r;
}
