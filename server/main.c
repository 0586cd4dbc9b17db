#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/cli.h"
#include "server/commands.h"
#include "server/sibling.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv); /* NULL: the sibling program gptqt-NAME */
    const char *help;
} commands[] = {
    {"serve", cmd_serve, "serve a model over an OpenAI-style HTTP API"},
    {"health", cmd_health, "ask a running server how it is"},
    {"run", cmd_run, "continue a prompt on standard output"},
    {"chat", cmd_chat, "talk with a model in the terminal"},
    {"quantize", NULL, "make a GPTQT checkpoint from a model"},
    {"eval", cmd_eval, "measure perplexity, and divergence from a reference model"},
    {"bench", cmd_bench, "measure prefill and decode speed"},
    {"inspect", cmd_inspect, "describe a model or checkpoint"},
    {"export", cmd_export, "write a model as GGUF for llama.cpp"},
    {"tokenize", cmd_tokenize, "turn text into token ids and back"},
    {"logits", cmd_logits, "write a model's logits for given token ids"},
    {"template", cmd_template, "render chat messages into a prompt"},
};

static void usage(FILE *out) {
    fprintf(out, "Usage: gptqt COMMAND [ARGUMENT...]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out,
            "\nMODEL is a checkpoint directory, a Hugging Face style directory, a .gguf file,\n"
            "or `builtin`. 'gptqt COMMAND --help' tells more.\n");
}

int main(int argc, char **argv) {
    argp_err_exit_status = CLI_USAGE;
    const char *name = argc > 1 ? argv[1] : "--help";
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        usage(argc > 1 ? stdout : stderr);
        return argc > 1 ? 0 : CLI_USAGE;
    }
    if (!strcmp(name, "--version")) {
        puts("gptqt " GPTQT_VERSION);
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(name, commands[i].name)) continue;
        if (!commands[i].run) return sibling_run(name, argv + 1);
        char shown[64];
        snprintf(shown, sizeof shown, "gptqt %s", name);
        argv[1] = shown;
        return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "gptqt: '%.40s' is no command; 'gptqt --help' lists them\n", name);
    return CLI_USAGE;
}
