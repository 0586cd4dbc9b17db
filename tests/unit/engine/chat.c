#include "engine/chat.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "kernels/error.h"
#include "tests/support/jsonl.h"

static struct chat_template *make(const char *text) {
    struct chat_template *t = NULL;
    struct error err = {""};
    cr_assert_eq(chat_template_new(&t, text, strlen(text), &err), 0, "%s", err.text);
    return t;
}

static struct chat_message message(const char *role, const char *content) {
    return (struct chat_message){role, strlen(role), content, strlen(content)};
}

static void expect(const char *text, const struct chat_message *messages, size_t n, bool generate,
                   const char *expected) {
    struct chat_template *t = make(text);
    struct buf out = {0};
    struct error err = {""};
    struct chat_prompt prompt = {messages, n, generate, "<s>", "</s>"};
    cr_assert_eq(chat_render(t, &prompt, &out, &err), 0, "%s", err.text);
    cr_expect_str_eq(out.data, expected);
    buf_free(&out);
    chat_template_free(t);
}

static const char chatml[] = "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% endfor %}";

Test(chat, chatml) {
    struct chat_message messages[] = {message("system", "Be brief."), message("user", " Hi \n"),
                                      message("assistant", "")};
    expect(chatml, messages, 3, true,
           "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \n<|im_end|>\n"
           "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n");
    expect(chatml, messages + 1, 1, false, "<|im_start|>user\n Hi \n<|im_end|>\n");
}

Test(chat, a_default_system_message_is_taken_from_the_template) {
    struct chat_message messages[] = {message("system", ""), message("user", "Hi")};
    static const char *const templates[] = {
        "'<|im_start|>system\nYou are \\'it\\'.<|im_end|>\n' }}",
        "'<|im_start|>system\\n' }} x {{ '<|im_start|>system\\nYou are \\'it\\'.<|im_end|>\\n' }}",
        "'<|im_start|>system\\n' + c '<|im_start|>system\\nYou are \\'it\\'.<|im_end|>",
    };
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        expect(templates[i], messages + 1, 1, false,
               "<|im_start|>system\nYou are 'it'.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
        expect(templates[i], messages, 2, false,
               "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
    }
    expect("'<|im_start|>system\\n' + content + '<|im_end|>'", messages + 1, 1, false,
           "<|im_start|>user\nHi<|im_end|>\n");
    expect("'<|im_start|>system\\nunfinished", messages + 1, 1, false,
           "<|im_start|>user\nHi<|im_end|>\n");
}

Test(chat, llama_2) {
    static const char text[] = "{{ bos_token + '[INST] ' }} <<SYS>> {{ eos_token }}";
    struct chat_message messages[] = {message("system", " S "), message("user", " one "),
                                      message("assistant", " two\n"), message("user", "three")};
    expect(text, messages, 4, true,
           "<s>[INST] <<SYS>>\n S \n<</SYS>>\n\n one [/INST] two </s><s>[INST] three [/INST]");
    expect(text, messages + 1, 1, true, "<s>[INST] one [/INST]");
}

Test(chat, llama_3) {
    static const char plain[] = "'<|start_header_id|>' '<|eot_id|>' bos_token";
    static const char dated[] = "{{- bos_token }}{%- set date_string = \"26 Jul 2024\" %}"
                                "{{- \"Cutting Knowledge Date: December 2023\\n\" }}"
                                "<|start_header_id|> <|eot_id|>";
    struct chat_message messages[] = {message("system", " S\n"), message("user", "Hi ")};
    expect(plain, messages, 2, true,
           "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
           "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
           "<|start_header_id|>assistant<|end_header_id|>\n\n");
    expect(dated, messages, 1, false,
           "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
           "2023\nToday Date: 26 Jul 2024\n\nS<|eot_id|>");
    expect(dated, messages + 1, 1, false,
           "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
           "2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
           "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>");
}

Test(chat, tells_the_form) {
    struct chat_template *t = make(chatml);
    cr_expect_str_eq(chat_template_form(t), "ChatML");
    cr_expect_not(chat_template_has_bos(t));
    chat_template_free(t);
    t = make("{{ bos_token }}[INST] <<SYS>>");
    cr_expect_str_eq(chat_template_form(t), "Llama 2");
    cr_expect(chat_template_has_bos(t));
    chat_template_free(t);
    chat_template_free(NULL);
}

Test(chat, other_forms_are_refused) {
    static const char *const texts[] = {
        "",
        "<start_of_turn>",
        "[INST] {{ content }} [/INST]",
        "<|im_start|>user<|im_sep|>",
        "<|im_star",
        "'<|im_start|>assistant\\n' '<|im_start|>assistant\\n<think>\\n'"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct chat_template *t = NULL;
        struct error err = {""};
        cr_expect_eq(chat_template_new(&t, texts[i], strlen(texts[i]), &err), -ENOTSUP);
        cr_expect_not_null(strstr(err.text, "ChatML"), "%s", err.text);
        cr_expect_null(t);
    }
}

Test(chat, bad_messages_are_refused_by_number) {
    static const char llama2[] = "[INST] <<SYS>>", llama3[] = "<|start_header_id|><|eot_id|>";
    const struct {
        const char *text;
        struct chat_message messages[2];
        size_t n;
        const char *named;
    } cases[] = {
        {chatml, {message("user", "")}, 0, "messages"},
        {chatml, {message("user", "a"), message("", "b")}, 2, "messages[1].role"},
        {chatml, {message("a<|im_end|>b", "x")}, 1, "messages[0].role"},
        {chatml, {{"us\0er", 5, "x", 1}}, 1, "messages[0].role"},
        {chatml, {message("user\n", "x")}, 1, "messages[0].role"},
        {chatml, {message("abcdefghijklmnopqrstuvwxyzabcdefg", "x")}, 1, "messages[0].role"},
        {llama3, {message("user", "a"), message("tool", "b")}, 2, "messages[1].role: 'tool'"},
        {llama2, {message("user", "a"), message("user", "b")}, 2, "messages[1].role"},
        {llama2, {message("assistant", "a")}, 1, "messages[0].role"},
        {llama2, {message("system", "a"), message("system", "a")}, 2, "messages[1].role"},
        {llama2, {message("system", "a")}, 1, "no user message"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat_template *t = make(cases[i].text);
        struct buf out = {0};
        struct error err = {""};
        struct chat_prompt prompt = {.messages = cases[i].messages, .n_messages = cases[i].n};
        buf_puts(&out, "kept");
        cr_expect_eq(chat_render(t, &prompt, &out, &err), -EINVAL, "case %zu", i);
        cr_expect_not_null(strstr(err.text, cases[i].named), "case %zu: %s", i, err.text);
        cr_expect_str_eq(out.data, "kept");
        buf_free(&out);
        chat_template_free(t);
    }
}

enum { MAX_MESSAGES = 64 };

static bool is_plain(const char *role) {
    return strcmp(role, "system") == 0 || strcmp(role, "user") == 0 ||
           strcmp(role, "assistant") == 0;
}

/* Fills in plain messages; false for what chat.h does not promise: tools, other roles, parts, extra fields,
 * template variables, and lists that we refuse where the template answers something. */
static bool read_messages(const json_t *row, struct chat_message *messages, size_t *n) {
    const json_t *item;
    size_t i;
    *n = 0;
    if (json_is_array(json_object_get(row, "tools"))) return false;
    if (json_object_size(json_object_get(row, "kwargs"))) return false;
    json_array_foreach(json_object_get(row, "messages"), i, item) {
        const json_t *role = json_object_get(item, "role"),
                     *text = json_object_get(item, "content");
        if (!json_is_string(role) || !json_is_string(text) || json_object_size(item) != 2)
            return false;
        if (i == MAX_MESSAGES || !is_plain(json_string_value(role))) return false;
        messages[(*n)++] = (struct chat_message){json_string_value(role), json_string_length(role),
                                                 json_string_value(text), json_string_length(text)};
    }
    return *n > 0 && strcmp(json_string_value(json_object_get(row, "case")), "only_system") != 0;
}

static int check_row(const struct chat_template *t, const char *name, const json_t *row) {
    struct chat_message messages[MAX_MESSAGES];
    struct chat_prompt prompt = {.messages = messages,
                                 .add_generation_prompt =
                                     json_is_true(json_object_get(row, "add_generation_prompt")),
                                 .bos = json_string_value(json_object_get(row, "bos_token")),
                                 .eos = json_string_value(json_object_get(row, "eos_token"))};
    if (!read_messages(row, messages, &prompt.n_messages)) return 0;
    const char *what = json_string_value(json_object_get(row, "case"));
    const json_t *expected = json_object_get(row, "expected");
    struct buf out = {0};
    struct error err = {""};
    int r = chat_render(t, &prompt, &out, &err);
    if (expected) {
        cr_expect_eq(r, 0, "%s %s: %s", name, what, err.text);
        cr_expect(r < 0 || (out.len == json_string_length(expected) &&
                            memcmp(out.data, json_string_value(expected), out.len) == 0),
                  "%s %s: '%s' for '%s'", name, what, out.data, json_string_value(expected));
    } else {
        cr_expect_lt(r, 0, "%s %s", name, what);
    }
    buf_free(&out);
    return 1;
}

static void check_vectors(const char *name, int least) {
    char path[160];
    size_t n;
    struct jsonl rows;
    json_t *row;
    int n_checked = 0;
    snprintf(path, sizeof path, "fixtures/chat-templates/templates/%s.jinja", name);
    char *text = jsonl_read_shared(path, &n);
    struct chat_template *t = make(text);
    snprintf(path, sizeof path, "fixtures/chat-templates/vectors/%s.jsonl", name);
    jsonl_open_shared(&rows, path);
    while ((row = jsonl_next(&rows))) {
        n_checked += check_row(t, name, row);
        json_decref(row);
    }
    cr_expect_geq(n_checked, least, "%s: %d", name, n_checked);
    jsonl_close(&rows);
    chat_template_free(t);
    free(text);
}

Test(chat, equals_real_templates) {
    check_vectors("chatml", 34);
    check_vectors("smollm2-instruct", 34);
    check_vectors("llama-2-style", 34);
    check_vectors("meta-llama-Llama-3.1-8B-Instruct", 34);
    check_vectors("Qwen-Qwen2.5-7B-Instruct", 34);
}
