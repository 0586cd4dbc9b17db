#include "server/api/openapi.h"

/* Shorthands: S text, I integer, N number, B boolean; O may be null. */
#define S       "{'type':'string'}"
#define I       "{'type':'integer'}"
#define N       "{'type':'number'}"
#define B       "{'type':'boolean'}"
#define OS      "{'type':['string','null']}"
#define NIL     "{'type':'null'}"
#define ONLY(x) "{'const':" x "}"
#define LIST(x) "{'type':'array','items':" x "}"
#define REF(x)  "{'$ref':'#/components/schemas/" x "'}"
#define OPT(x)  "{'anyOf':[" x "," NIL "]}"

#define OBJECT(required, properties)                                                               \
    "{'type':'object','required':[" required "],'properties':{" properties "}}"

#define FINISH      "{'enum':['stop','length']}"
#define STOP_REASON "{'type':['string','integer','null']}"
#define IDS         LIST(I)
#define PROMPT_LOGPROBS                                                                            \
    LIST("{'anyOf':[" NIL ",{'type':'object','additionalProperties':" REF("RankedLogprob") "}]}")
#define HEAD(object)                                                                               \
    "'id':" S ",'object':" ONLY("'" object "'") ",'created':" I ",'model':" S                      \
                                                ",'system_fingerprint':" S
#define HEAD_NAMES "'id','object','created','model','system_fingerprint','choices','usage'"

static const struct openapi_answer answers[] = {
    {"Error", OBJECT("'error'",
                     "'error':" OBJECT("'message','type','param','code'",
                                       "'message':" S ",'type':" S ",'param':" OS ",'code':" OS))},
    {"Cancelled",
     OBJECT("'id','object','state'",
            "'id':" S ",'object':" ONLY("'request.cancelled'") ",'state':{'enum':["
                                                               "'queued','prefill','decode']}")},
    {"ExplainRequest", "{'anyOf':[" REF("CompletionRequest") "," REF("ChatRequest") "]}"},
    {"Explanation",
     OBJECT("'object','model','prompts','sequences','prompt_tokens','estimated','max_new_tokens',"
            "'kv_blocks','kv_blocks_total','kv_blocks_free','kv_bytes','queue_position',"
            "'predicted_ttft_ms','admission'",
            "'object':" ONLY(
                "'explanation'") ",'model':" S ",'prompts':" I ",'sequences':" I
                                 ",'prompt_tokens':" I
                                 ",'estimated':{'type':'boolean'},'max_new_tokens':" I
                                 ",'kv_blocks':" I ",'kv_blocks_total':" I ",'kv_blocks_free':" I
                                 ",'kv_bytes':" I ",'queue_position':" I
                                 ",'predicted_ttft_ms':{'type':['number','null']}"
                                 ",'admission':" OBJECT(
                                     "'verdict','status','code','reason','retry_after_ms'",
                                     "'verdict':{'enum':['admit','refuse']},'status':" I
                                     ",'code':" OS ",'reason':" OS
                                     ",'retry_after_ms':{'type':['integer','null']}"))},
    {"Usage", OBJECT("'prompt_tokens','completion_tokens','total_tokens','prompt_tokens_details'",
                     "'prompt_tokens':" I ",'completion_tokens':" I ",'total_tokens':" I
                     ",'prompt_tokens_details':" OBJECT("'cached_tokens'", "'cached_tokens':" I))},
    {"RankedLogprob", OBJECT("'logprob','rank','decoded_token'",
                             "'logprob':" N ",'rank':{'type':['integer','null']},"
                             "'decoded_token':" S)},
    {"CompletionLogprobs",
     OBJECT(
         "'tokens','token_logprobs','top_logprobs','text_offset'",
         "'tokens':" LIST(S) ",'token_logprobs':" LIST(
             "{'type':['number','null']}") ",'top_logprobs':" LIST("{'type':['object','null'],'"
                                                                   "additionalProperties':" N
                                                                   "}") ",'text_offset':" LIST(I))},
    {"Completion",
     OBJECT(HEAD_NAMES,
            HEAD("text_completion") ",'usage':" REF("Usage") ",'choices':" LIST(OBJECT(
                "'index','text','logprobs','finish_reason','stop_reason'",
                "'index':" I ",'text':" S ",'logprobs':" OPT(REF(
                    "CompletionLogprobs")) ",'finish_reason':" FINISH ",'stop_reason':" STOP_REASON
                                           ",'token_ids':" IDS ",'prompt_token_ids':" IDS
                                           ",'prompt_logprobs':" PROMPT_LOGPROBS)))},
    {"TokenLogprob", OBJECT("'token','logprob','bytes'",
                            "'token':" S ",'logprob':" N ",'bytes':" LIST(
                                "{'type':'integer','minimum':0,"
                                "'maximum':255}") ",'top_logprobs':" LIST(REF("TokenLogprob")))},
    {"ChatCompletion",
     OBJECT(
         HEAD_NAMES,
         HEAD("chat.completion") ",'usage':" REF(
             "Usage") ",'prompt_token_ids':" IDS ",'prompt_logprobs':" PROMPT_LOGPROBS
                      ",'choices':" LIST(OBJECT(
                          "'index','message','logprobs','finish_reason','stop_reason'",
                          "'index':" I ",'message':" OBJECT(
                              "'role','content','refusal'",
                              "'role':" ONLY(
                                  "'assis"
                                  "tant'") ",'content':" S
                                           ",'refusal':" NIL) ",'logprobs':" OPT(OBJECT("'content',"
                                                                                        "'refusal'",
                                                                                        "'content'"
                                                                                        ":" LIST(REF(
                                                                                            "TokenL"
                                                                                            "ogpro"
                                                                                            "b")) ",'refusal':" NIL)) ",'finish_reason'"
                                                                                                                      ":" FINISH
                                                                                                                      ",'stop_reason'"
                                                                                                                      ":" STOP_REASON
                                                                                                                      ",'token_ids':" IDS)))},
    {"Response",
     OBJECT(
         "'id','object','created_at','status','error','incomplete_details','model','output',"
         "'store','usage'",
         "'id':" S ",'object':" ONLY(
             "'response'") ",'created_at':" I
                           ",'status':{'enum':['completed','incomplete']},'error':" NIL
                           ",'incomplete_details':" OPT(OBJECT(
                               "'reason'",
                               "'reason':" S)) ",'model':" S ",'instructions':" OS
                                               ",'max_output_tokens':{'type':['integer','null']},'"
                                               "store':" ONLY(
                                                   "false") ",'temperature':" N ",'top_p':" N
                                                            ",'truncation':" S ",'usage':" OBJECT("'input_tokens','output_tokens','total_tokens'", "'input_tokens':" I ",'output_tokens':" I ",'total_tokens':" I) ",'output':" LIST(
                                                                OBJECT(
                                                                    "'id','type','status','role','"
                                                                    "content'",
                                                                    "'id':" S ",'type':" ONLY(
                                                                        "'message'") ",'status':" S
                                                                                     ",'role'"
                                                                                     ":" ONLY(
                                                                                         "'ass"
                                                                                         "ista"
                                                                                         "nt'") ",'"
                                                                                                "co"
                                                                                                "nt"
                                                                                                "en"
                                                                                                "t'"
                                                                                                ":" LIST(OBJECT(
                                                                                                    "'type','"
                                                                                                    "text','"
                                                                                                    "annotatio"
                                                                                                    "ns'",
                                                                                                    "'type'"
                                                                                                    ":" ONLY(
                                                                                                        "'outp"
                                                                                                        "ut_"
                                                                                                        "text"
                                                                                                        "'") ",'text':" S
                                                                                                             ",'annotations':" LIST(
                                                                                                                 "{}"))))))},
    {"EmbeddingList",
     OBJECT("'object','model','data','usage'",
            "'object':" ONLY("'list'") ",'id':" S ",'created':" I ",'model':" S ",'data':" LIST(
                OBJECT("'object','embedding','index'",
                       "'object':" ONLY("'embedding'") ",'index':" I ",'embedding':{'anyOf':[" LIST(
                           N) "," S "]}")) ",'usage':" OBJECT("'prompt_tokens','total_tokens'",
                                                              "'prompt_tokens':" I
                                                              ",'total_tokens':" I))},
    {"Tokens",
     OBJECT("'count','max_model_len','tokens','token_strs'",
            "'count':" I ",'max_model_len':" I ",'tokens':" IDS ",'token_strs':" OPT(LIST(S)))},
    {"Detokenized", OBJECT("'prompt'", "'prompt':" S)},
    {"Model",
     OBJECT("'id','object','created','owned_by','root','parent','max_model_len','meta'",
            "'id':" S ",'object':" ONLY(
                "'model'") ",'created':" I ",'owned_by':" S ",'root':" S ",'parent':" NIL
                           ",'max_model_len':" I ",'meta':" OBJECT(
                               "'architecture','quantization','bits','group','backend','context_"
                               "length'",
                               "'architecture':" S ",'quantization':" S ",'bits':" I ",'group':" I
                               ",'backend':" S ",'context_length':" I ",'vocab':" I ",'layers':" I
                               ",'hidden':" I ",'weight_bytes':" I ",'kv_bytes':" I
                               ",'tokenizer':" B ",'chat':" B))},
    {"ModelList",
     OBJECT("'object','data'", "'object':" ONLY("'list'") ",'data':" LIST(REF("Model")))},
    {"Health", OBJECT("'status','running','waiting'",
                      "'status':" S ",'running':" I ",'waiting':" I ",'kv_blocks':" I
                      ",'kv_blocks_free':" I ",'loaded_percent':" N)},
    {"Load", OBJECT("'server_load'", "'server_load':" I)},
    {"Sleeping", OBJECT("'is_sleeping'", "'is_sleeping':" ONLY("false"))},
    {"Version", OBJECT("'version'", "'version':" S)},
    {"Document", OBJECT("'openapi','paths'", "'openapi':" S ",'paths':{'type':'object'}")},
};

const struct openapi_answer *openapi_answers(size_t *ret_n) {
    *ret_n = sizeof answers / sizeof *answers;
    return answers;
}
