/* commands.h - the subcommands of gptqt.
 *
 * Owns      nothing.
 * Borrows   argv for the life of the process.
 * Thread    main.
 * Fails     each returns an exit status: 0, 1 (failed, one line on stderr), 2 (wrong usage).
 * Cost      that of the command.
 *
 * argv[0] is the subcommand's name as shown in messages ("gptqt serve"). */
#ifndef SERVER_COMMANDS_H
#define SERVER_COMMANDS_H

int cmd_serve(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_health(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_logits(int argc, char **argv);
int cmd_template(int argc, char **argv);

#endif
