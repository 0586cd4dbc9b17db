#include "server/commands.h"

/* `gptqt serve` on the fake engine: what the API's tests start. */
int main(int argc, char **argv) { return cmd_serve(argc, argv); }
