#define _GNU_SOURCE /* getopt_long */

#include "tests/load/options.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: load [flags] http://127.0.0.1:PORT\n"
    "\n"
    "Asks a server on this machine and holds every answer against its question.\n"
    "\n"
    "  --mix LIST         cases with weights: health completion stream chat chat-stream echo slow\n"
    "                     cancel bad (stream=1)\n"
    "  --clients N        connections that ask (16); a closed loop, each asks when it has its "
    "answer\n"
    "  --rate R           questions a second at random moments instead, an open loop\n"
    "  --seconds S        how long (5); --requests N: or how many questions, whichever is first\n"
    "  --warmup S         at the beginning, that is not measured\n"
    "  --ramp S           the clients begin within S seconds, not at once\n"
    "  --idle N           connections more that are held, and asked once at the end\n"
    "  --tokens A[-B]     max_tokens of the subjects (16)\n"
    "  --words A[-B]      words of their prompts (8)\n"
    "  --subjects N       how many different ones (16)\n"
    "  --ends             every other subject may end where the model wants to\n"
    "  --model NAME       sent with each request\n"
    "  --expect WHAT      serial: learn the right answers one by one first (default); first: the\n"
    "                     first answer is right; none\n"
    "  --strict           parse every event as JSON\n"
    "  --no-ids           the server does not return X-Request-Id\n"
    "  --patient          the server restarts: try again where no byte of an answer came\n"
    "  --keys A,B,...     API keys, in turn over the clients; --flood N: clients more for the "
    "first\n"
    "  --pace R           tokens a second that each stream should have: measures lateness\n"
    "  --sources N        loopback addresses to connect from (1)\n"
    "  --timeout S        after which an answer is lost (60)\n"
    "  --raw FILE         a line of JSON for each question\n"
    "  --json             the result as one line of JSON\n"
    "  --seed N\n"
    "\n"
    "Exit status 1 when an answer was lost or wrong, or an idle connection was dropped.\n";

enum flag {
    MIX = 1,
    CLIENTS,
    RATE,
    SECONDS,
    REQUESTS,
    WARMUP,
    RAMP,
    IDLE,
    TOKENS,
    WORDS,
    SUBJECTS,
    ENDS,
    MODEL,
    EXPECT,
    STRICT,
    NO_IDS,
    PATIENT,
    KEYS,
    FLOOD,
    PACE,
    SOURCES,
    TIMEOUT,
    RAW,
    JSON,
    SEED
};

static const struct option flags[] = {
    {"mix", 1, NULL, MIX},         {"clients", 1, NULL, CLIENTS},   {"rate", 1, NULL, RATE},
    {"seconds", 1, NULL, SECONDS}, {"requests", 1, NULL, REQUESTS}, {"warmup", 1, NULL, WARMUP},
    {"ramp", 1, NULL, RAMP},       {"idle", 1, NULL, IDLE},         {"tokens", 1, NULL, TOKENS},
    {"words", 1, NULL, WORDS},     {"subjects", 1, NULL, SUBJECTS}, {"ends", 0, NULL, ENDS},
    {"model", 1, NULL, MODEL},     {"expect", 1, NULL, EXPECT},     {"strict", 0, NULL, STRICT},
    {"no-ids", 0, NULL, NO_IDS},   {"patient", 0, NULL, PATIENT},   {"keys", 1, NULL, KEYS},
    {"flood", 1, NULL, FLOOD},     {"pace", 1, NULL, PACE},         {"sources", 1, NULL, SOURCES},
    {"timeout", 1, NULL, TIMEOUT}, {"raw", 1, NULL, RAW},           {"json", 0, NULL, JSON},
    {"seed", 1, NULL, SEED},       {"help", 0, NULL, 'h'},          {NULL, 0, NULL, 0}};

static _Noreturn void refuse(const char *what, const char *value) {
    fprintf(stderr, "load: %s: '%s'\n", what, value);
    exit(2);
}

static double number(const char *text, double low, double high) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= low && value <= high))
        refuse("not a number in range", text);
    return value;
}

static void range(const char *text, int *low, int *high) {
    if (sscanf(text, "%d-%d", low, high) < 2) *high = *low = atoi(text);
    if (*low < 1 || *high < *low || *high > 100000) refuse("not a range", text);
}

static int expectation(const char *text) {
    static const char *const names[] = {"serial", "first", "none"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(text, names[i])) return i;
    refuse("expect is serial, first or none", text);
}

static void split_keys(struct options *o, char *list) {
    o->keys = calloc(strlen(list) / 2 + 2, sizeof *o->keys);
    if (!o->keys) refuse("out of memory for", list);
    for (char *key = strtok(list, ","); key; key = strtok(NULL, ",")) o->keys[o->n_keys++] = key;
}

/* Only this machine: a load generator that any address could be given to is a weapon. */
static void read_url(struct options *o, const char *url) {
    char host[48];
    unsigned port;
    if (sscanf(url, "http://%47[0-9.]:%u", host, &port) != 2 || port > 65535 ||
        inet_pton(AF_INET, host, &o->to.sin_addr) != 1)
        refuse("not of the form http://127.0.0.1:PORT", url);
    if (ntohl(o->to.sin_addr.s_addr) >> 24 != 127) refuse("not a loopback address", url);
    o->to.sin_family = AF_INET;
    o->to.sin_port = htons((uint16_t)port);
    snprintf(o->host, sizeof o->host, "%s:%u", host, port);
    o->cases.host = o->host;
}

static void take(struct options *o, int flag, char *value) {
    struct cases_options *c = &o->cases;
    switch ((enum flag)flag) {
    case MIX:
        c->mix = value;
        break;
    case CLIENTS:
        o->clients = (int)number(value, 1, 100000);
        break;
    case RATE:
        o->rate = number(value, 0.01, 1e6);
        break;
    case SECONDS:
        o->seconds = number(value, 0.01, 86400);
        break;
    case REQUESTS:
        o->requests = (long)number(value, 1, 1e9);
        break;
    case WARMUP:
        o->warmup = number(value, 0, 3600);
        break;
    case RAMP:
        o->ramp = number(value, 0, 3600);
        break;
    case IDLE:
        o->idle = (int)number(value, 0, 100000);
        break;
    case TOKENS:
        range(value, &c->min_tokens, &c->max_tokens);
        break;
    case WORDS:
        range(value, &c->min_words, &c->max_words);
        break;
    case SUBJECTS:
        c->n_subjects = (int)number(value, 1, 100000);
        break;
    case ENDS:
        c->end_allowed = true;
        break;
    case MODEL:
        c->model = value;
        break;
    case EXPECT:
        o->expect = expectation(value);
        break;
    case STRICT:
        o->strict = true;
        break;
    case NO_IDS:
        o->ids = false;
        break;
    case PATIENT:
        o->patient = true;
        break;
    case KEYS:
        split_keys(o, value);
        break;
    case FLOOD:
        o->flood = (int)number(value, 0, 100000);
        break;
    case PACE:
        o->pace = number(value, 0.01, 1e6);
        break;
    case SOURCES:
        o->sources = (int)number(value, 1, 200);
        break;
    case TIMEOUT:
        o->timeout = number(value, 0.01, 3600);
        break;
    case RAW:
        o->raw = value;
        break;
    case JSON:
        o->json = true;
        break;
    case SEED:
        o->seed = strtoul(value, NULL, 10);
        break;
    }
}

void options_read(struct options *o, int argc, char **argv) {
    *o = (struct options){.clients = 16,
                          .sources = 1,
                          .seconds = 5,
                          .timeout = 60,
                          .ids = true,
                          .seed = 1,
                          .cases = {.mix = "stream",
                                    .n_subjects = 16,
                                    .min_tokens = 16,
                                    .max_tokens = 16,
                                    .min_words = 8,
                                    .max_words = 8}};
    for (int flag; (flag = getopt_long(argc, argv, "h", flags, NULL)) != -1;) {
        if (flag == 'h') {
            fputs(usage, stdout);
            exit(0);
        }
        if (flag == '?') exit(2);
        take(o, flag, optarg);
    }
    if (optind + 1 != argc) {
        fputs(usage, stderr);
        exit(2);
    }
    read_url(o, argv[optind]);
}
