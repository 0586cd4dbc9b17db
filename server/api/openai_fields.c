#include "server/api/openai_fields.h"

#include <string.h>

#include "server/api/openai_prompt.h"
#include "server/api/openai_readers.h"
#include "server/text.h"

enum {
    C = 1 << OPENAI_COMPLETION,
    H = 1 << OPENAI_CHAT,
    R = 1 << OPENAI_RESPONSE,
    E = 1 << OPENAI_EMBEDDING,
    T = 1 << OPENAI_TOKENIZE,
    D = 1 << OPENAI_DETOKENIZE,
    G = C | H | R, /* generate text */
    ALL = G | E | T | D
};

#define AT(member) offsetof(struct openai_request, member)

#define REAL(name, where, member, min, max, example, doc)                                          \
    { name, where, OPENAI_SUPPORTED, openai_read_real, AT(member), min, max, NULL, example, doc }
#define INT(name, where, member, min, max, example, doc)                                           \
    { name, where, OPENAI_SUPPORTED, openai_read_int, AT(member), min, max, NULL, example, doc }
#define BOOL(name, where, member, example, doc)                                                    \
    { name, where, OPENAI_SUPPORTED, openai_read_bool, AT(member), 0, 0, NULL, example, doc }
#define NOT(name, where, member, example, doc)                                                     \
    { name, where, OPENAI_SUPPORTED, openai_read_not, AT(member), 0, 0, NULL, example, doc }
#define OTHER(name, where, read, offset, min, max, schema, example, doc)                           \
    { name, where, OPENAI_SUPPORTED, read, offset, min, max, schema, example, doc }
#define REFUSED(name, where, neutral, example, doc)                                                \
    { name, where, OPENAI_REFUSED, openai_read_refused, 0, 0, 0, neutral, example, doc }
#define IGNORED(name, where, example, doc)                                                         \
    { name, where, OPENAI_IGNORED, NULL, 0, 0, 0, NULL, example, doc }

#define IDS  "'type':'array','minItems':1,'items':{'type':'integer','minimum':0,'maximum':@}"
#define TEXT "'type':'string','minLength':1"
#define PROMPT(most)                                                                               \
    "'anyOf':[{" TEXT "},{'type':'array','minItems':1,'maxItems':" #most ",'items':{" TEXT         \
    "}},{" IDS "},{'type':'array','minItems':1,'maxItems':" #most ",'items':{" IDS "}}]"
#define STOP    "'type':'string','minLength':1,'pattern':'^[^\\\\x00]+$'"
#define CONTENT "{'type':'string','pattern':'^[^\\\\x00]*$'}"
#define PART(t)                                                                                    \
    "{'type':'object','properties':{'type':{'enum':[" t "]},'text':" CONTENT "},"                  \
    "'required':['type','text']}"
#define BODY(t) "{'anyOf':[" CONTENT ",{'type':'array','minItems':1,'items':" PART(t) "}]}"
#define SPEAKER "{'enum':['system','developer','user','assistant']}"
#define MESSAGE(t)                                                                                 \
    "{'type':'object','properties':{'role':" SPEAKER                                               \
    ",'content':" BODY(t) "},"                                                                     \
                          "'required':['role','content']}"

/* In the README's order: what says the most first. */
static const struct openai_field fields[] = {
    OTHER("model", ALL, openai_read_model, 0, 0, 0, "'type':['string','null']", "'builtin'",
          "one of the served names, empty or absent; another one is 404"),
    OTHER("prompt", C, openai_prompt_parse, 0, 0, 0, PROMPT(128), "['a',[98]]",
          "a string, a list of strings, token ids, or a list of such lists"),
    OTHER("messages", H, openai_prompt_messages, 0, 0, 0,
          "'type':'array','minItems':1,'items':" MESSAGE("'text'"),
          "[{'role':'user','content':'a'}]",
          "roles system, developer (taken as system), user, assistant; content a string or text "
          "parts, joined by a line break"),
    OTHER("messages", T, openai_prompt_messages, 0, 0, 0,
          "'type':['array','null'],'minItems':1,'items':" MESSAGE("'text'"),
          "[{'role':'user','content':'a'}]", "as in a chat; this or `prompt`"),
    OTHER("input", R, openai_prompt_items, 0, 0, 0,
          "'anyOf':[{'type':'string','minLength':1,'pattern':'^[^\\\\x00]+$'},{'type':'array',"
          "'minItems':1,'items':" MESSAGE("'input_text','output_text','text'") "}]",
          "'a'", "a string, or a list of messages whose content is a string or text parts"),
    OTHER("input", E, openai_prompt_parse, 0, 0, 0, PROMPT(2048), "['a','b']",
          "as `prompt`; up to 2048 of them"),
    OTHER("prompt", T, openai_prompt_text, 0, 0, 0, "'type':['string','null']", "'a'",
          "a string; this or `messages`"),
    OTHER("tokens", D, openai_prompt_tokens, 0, 0, 0,
          "'type':'array','items':{'type':'integer','minimum':0,'maximum':@}", "[97]", "token ids"),
    OTHER("instructions", R, openai_prompt_instructions, 0, 0, 0,
          "'type':['string','null'],'pattern':'^[^\\\\x00]*$'", "'b'",
          "a system message before the input"),
    OTHER("max_tokens", C, openai_read_max_tokens, AT(max_tokens), 0, 1 << 24, NULL, "5",
          "from 0; 16 by default"),
    INT("max_tokens", H, max_tokens, 1, 1 << 24, "5", "from 1; up to the context's end by default"),
    INT("max_completion_tokens", H, max_completion_tokens, 1, 1 << 24, "5",
        "as `max_tokens`, which it beats"),
    INT("max_output_tokens", R, max_tokens, 1, 1 << 24, "5",
        "from 1; up to the context's end by default"),
    INT("min_tokens", G, min_tokens, 0, 1 << 24, "1", "end tokens are not chosen before"),
    INT("n", C | H, n, 1, OPENAI_MAX_CHOICES, "2", "1 to 128; prompts times n at most 128"),
    INT("best_of", C, best_of, 1, OPENAI_MAX_CHOICES, "2",
        "n to 128: that many are generated, the n likeliest returned; not with stream"),
    BOOL("echo", C, echo, "true",
         "the prompt stands before the text, with logprobs its tokens too"),
    REAL("temperature", G, sampling.temperature, 0, 2, "0.5", "0 to 2; 0 is greedy"),
    REAL("top_p", G, sampling.top_p, 1e-6, 1, "0.5", "above 0 to 1"),
    OTHER("top_k", G, openai_read_top_k, AT(sampling.top_k), -1, 1 << 24, NULL, "5",
          "0 or -1 is off"),
    REAL("min_p", G, sampling.min_p, 0, 0.999999, "0.1", "0 to below 1"),
    REAL("frequency_penalty", G, sampling.frequency_penalty, -2, 2, "0.5", "-2 to 2"),
    REAL("presence_penalty", G, sampling.presence_penalty, -2, 2, "0.5", "-2 to 2"),
    REAL("repetition_penalty", G, sampling.repetition_penalty, 0.01, 10, "1.5", "0.01 to 10"),
    OTHER("logit_bias", C | H, openai_read_bias, 0, -100, 100,
          "'type':['object','null'],'maxProperties':1024,'additionalProperties':{'type':'number',"
          "'minimum':-100,'maximum':100},'propertyNames':{'pattern':'^[0-9]{1,7}$'}",
          "{'1':-5}", "token ids with -100 to 100, up to 1024"),
    OTHER("seed", G, openai_read_seed, 0, 0, 0,
          "'type':['integer','null'],'minimum':-9223372036854775808,"
          "'maximum':18446744073709551615",
          "18446744073709551615",
          "any 64-bit integer, signed or not; choice i of a prompt uses seed + i"),
    OTHER("stop", C | H, openai_read_stop, 0, 0, 0,
          "'anyOf':[{" STOP "},{'type':'array','maxItems':16,'items':{" STOP "}},{'type':'null'}]",
          "['x','y']", "a string, or up to 16 of up to 1024 bytes"),
    OTHER(
        "stop_token_ids", G, openai_read_stop_ids, 0, 0, 0,
        "'type':['array','null'],'maxItems':16,'items':{'type':'integer','minimum':0,'maximum':@}",
        "[1,2]", "up to 16 tokens that end the text as end tokens do"),
    BOOL("include_stop_str_in_output", C | H, keep_stop, "true",
         "the stop string stays in the text"),
    BOOL("ignore_eos", G, ignore_eos, "false", "end tokens are ordinary tokens"),
    BOOL("stream", G, stream, "true", "the answer comes as an event stream"),
    OTHER("stream_options", C | H, openai_read_stream_options, 0, 0, 0,
          "'type':['object','null'],'properties':{'include_usage':{'type':['boolean','null']},"
          "'continuous_usage_stats':{'type':['boolean','null']}}",
          "{'include_usage':true,'continuous_usage_stats':true}",
          "`include_usage`: a last chunk with usage; `continuous_usage_stats`: one in each chunk"),
    INT("logprobs", C, n_logprobs, 0, ENGINE_MAX_LOGPROBS, "2", "0 to 20 alternatives"),
    BOOL("logprobs", H, logprobs_on, "true", "boolean"),
    INT("top_logprobs", H, n_logprobs, 0, ENGINE_MAX_LOGPROBS, "0",
        "0 to 20 alternatives; needs logprobs"),
    INT("prompt_logprobs", C | H, n_prompt_logprobs, 0, ENGINE_MAX_LOGPROBS, "1",
        "0 to 20 alternatives of the prompt's tokens; not with stream"),
    BOOL("return_token_ids", C | H, return_token_ids, "true",
         "`token_ids` and `prompt_token_ids` in the answer"),
    NOT("skip_special_tokens", G, keep_special, "false", "special tokens have no text (default)"),
    NOT("add_special_tokens", C | E | T, no_special, "false",
        "text prompts begin as the model's tokenizer has it (default)"),
    OTHER("truncate_prompt_tokens", C | H | E, openai_read_truncate, AT(truncate_prompt), -1,
          1 << 24, "'type':['integer','null'],'minimum':-1,'maximum':16777216,'not':{'const':0}",
          "5", "only the last that many tokens of the prompt count; -1 is as many as fit"),
    OTHER("truncation", R, openai_read_truncation, 0, 0, 0, "'enum':['auto','disabled',null]",
          "'auto'", "auto: the input's last tokens that fit"),
    INT("priority", ALL & ~(T | D), priority, -1000000, 1000000, "1", "lower ones run first"),
    OTHER("cache_salt", G, openai_read_salt, 0, 0, 0, "'type':['string','null'],'minLength':1",
          "'s'", "computed prompt beginnings are shared among equal salts only"),
    OTHER("request_id", ALL & ~(T | D), openai_read_id, 0, 0, 0,
          "'type':['string','null'],'pattern':'^[-A-Za-z0-9_.:]{1,64}$'", "'r-1'",
          "becomes part of the answer's `id`; 1 to 64 letters, digits or any of `-_.:`"),
    OTHER("encoding_format", E, openai_read_encoding, 0, 0, 0, "'enum':['float','base64',null]",
          "'base64'", "float, or base64 of little-endian 32-bit floats"),
    OTHER("dimensions", E, openai_read_dimensions, 0, 0, 0, NULL, NULL,
          "only the model's own number"),
    OTHER("pooling", E, openai_read_pooling, 0, 0, 0, "'enum':['last','mean',null]", "'mean'",
          "last, mean; what `--pooling` says by default"),
    BOOL("normalize", E, normalize, "false", "vectors have length 1 (default)"),
    BOOL("return_token_strs", T, return_token_strs, "true", "`token_strs` in the answer"),

    REFUSED("suffix", C, "['']", "'b'", "no model here fills in"),
    REFUSED("response_format", C | H, "[{'type':'text'}]", "{'type':'json_object'}",
            "structured output"),
    REFUSED("text", R, "[{},{'format':{'type':'text'}}]", "{'format':{'type':'json_object'}}",
            "structured output"),
    REFUSED("structured_outputs", G, "[]", "{'json':{}}", "structured output"),
    REFUSED("guided_json", C | H, "[]", "{}", "structured output"),
    REFUSED("guided_regex", C | H, "[]", "'a'", "structured output"),
    REFUSED("guided_choice", C | H, "[]", "['a']", "structured output"),
    REFUSED("guided_grammar", C | H, "[]", "'a'", "structured output"),
    REFUSED("structural_tag", C | H, "[]", "'a'", "structured output"),
    REFUSED("grammar", C | H, "['']", "'a'", "structured output"),
    REFUSED("json_schema", C | H, "[]", "{}", "structured output"),
    REFUSED("tools", H | R, "[[]]", "[{'type':'function'}]", "tools"),
    REFUSED("tool_choice", H | R, "['none','auto']", "'required'", "tools"),
    REFUSED("functions", H, "[[]]", "[{'name':'f'}]", "tools"),
    REFUSED("function_call", H, "['none','auto']", "{'name':'f'}", "tools"),
    REFUSED("previous_response_id", R, "[]", "'resp_1'", "answers are not stored"),
    REFUSED("conversation", R, "[]", "'conv_1'", "answers are not stored"),
    REFUSED("background", R, "[false]", "true", "answers are not stored"),
    REFUSED("prompt", R, "[]", "{'id':'p'}", "prompts are not stored"),
    REFUSED("include", R, "[[]]", "['message.output_text.logprobs']", "other parts of answers"),
    REFUSED("top_logprobs", R, "[0]", "2", "log probabilities in this form"),
    REFUSED("context_management", R, "[[]]", "[{'type':'compaction'}]", "changes of the input"),
    REFUSED("modalities", H, "[['text']]", "['text','audio']", "sound"),
    REFUSED("audio", H, "[]", "{'voice':'x'}", "sound"),
    REFUSED("web_search_options", H, "[]", "{}", "searching"),
    REFUSED("documents", H, "[[]]", "[{'text':'a'}]", "documents in templates"),
    REFUSED("chat_template", H | T, "['']", "'a'", "the model's template is used"),
    REFUSED("chat_template_kwargs", H | T, "[{}]", "{'a':1}", "the model's template is used"),
    REFUSED("add_generation_prompt", H | T, "[true]", "false", "the answer follows the messages"),
    REFUSED("continue_final_message", H | T, "[false]", "true", "the answer is a new message"),
    REFUSED("add_special_tokens", H, "[false]", "true", "the template says what comes first"),
    REFUSED("echo", H, "[false]", "true", "only of a completion"),
    REFUSED("use_beam_search", C | H, "[false]", "true", "another search"),
    REFUSED("length_penalty", C | H, "[1]", "2", "another search"),
    REFUSED("bad_words", C | H, "[[]]", "['a']", "use `logit_bias`"),
    REFUSED("allowed_token_ids", C | H, "[]", "[1]", "use `logit_bias`"),
    REFUSED("logits_processors", C | H, "[[]]", "['a']", "code of clients"),
    REFUSED("logprob_token_ids", C | H, "[[]]", "[1]", "chosen alternatives"),
    REFUSED("return_tokens_as_token_ids", C | H, "[false]", "true", "use `return_token_ids`"),
    REFUSED("prompt_embeds", C, "[]", "'a'", "prompts of vectors"),
    REFUSED("repetition_detection", C | H, "[]", "{}", "another end"),
    REFUSED("vllm_xargs", C | H, "[{}]", "{'a':1}", "another server's extensions"),
    REFUSED("mm_processor_kwargs", H, "[{}]", "{'a':1}", "pictures"),
    REFUSED("kv_transfer_params", C | H, "[]", "{}", "keys and values from elsewhere"),

    IGNORED("user", ALL & ~(T | D), "'u'", "who asks"),
    IGNORED("safety_identifier", H | R, "'u'", "who asks"),
    IGNORED("metadata", H | R, "{'a':'b'}", "notes of the client"),
    IGNORED("store", H | R, "false", "nothing is stored, whatever it says"),
    IGNORED("service_tier", G, "'auto'", "there is one"),
    IGNORED("prompt_cache_key", H | R, "'k'", "equal beginnings are found without it"),
    IGNORED("prompt_cache_retention", H | R, "'24h'", "as long as there is room"),
    IGNORED("prediction", H, "{'type':'content','content':'a'}", "of speed alone"),
    IGNORED("parallel_tool_calls", H | R, "true", "without tools nothing"),
    IGNORED("max_tool_calls", R, "1", "without tools nothing"),
    IGNORED("reasoning_effort", H, "'low'", "the models here do not reason apart"),
    IGNORED("reasoning", R, "{'effort':'low'}", "the models here do not reason apart"),
    IGNORED("include_reasoning", H, "true", "the models here do not reason apart"),
    IGNORED("verbosity", H, "'low'", "the models here know none"),
    IGNORED("stream_options", R, "{'include_obfuscation':false}", "nothing is padded"),
    IGNORED("spaces_between_special_tokens", C | H, "true", "the tokenizer's own text is kept"),
    IGNORED("cache_prompt", C | H, "true", "equal beginnings are always found"),
};

const struct openai_field *openai_fields(size_t *ret_n) {
    *ret_n = sizeof fields / sizeof *fields;
    return fields;
}

const struct openai_field *openai_field_find(const char *name, enum openai_kind kind) {
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].name[0] != name[0] || !(fields[i].where & 1u << kind)) continue;
        if (!strcmp(fields[i].name, name)) return &fields[i];
    }
    return NULL;
}

const char *openai_kind_name(enum openai_kind kind) {
    static const char *const names[OPENAI_KINDS] = {"completions", "chat",     "responses",
                                                    "embeddings",  "tokenize", "detokenize"};
    return names[kind];
}

void openai_field_where(struct text *out, const struct openai_field *f) {
    const char *comma = "";
    if (f->where == ALL) {
        text_adds(out, "all");
        return;
    }
    for (int kind = 0; kind < OPENAI_KINDS; kind++) {
        if (!(f->where & 1u << kind)) continue;
        text_addf(out, "%s%s", comma, openai_kind_name((enum openai_kind)kind));
        comma = ", ";
    }
}

void openai_field_json(struct text *out, const char *json) {
    for (size_t n; *json; json += n) {
        n = strcspn(json, "'");
        text_add(out, json, n);
        if (json[n]) {
            text_add(out, "\"", 1);
            n++;
        }
    }
}
