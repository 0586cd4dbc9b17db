/* sibling.h - replaces this process by the program gptqt-NAME that lies beside it.
 *
 * Owns      nothing.
 * Borrows   its arguments.
 * Thread    main.
 * Fails     returns status 1 after one line on stderr when there is no such program.
 * Cost      one exec.
 *
 * The quantizer is a program of its own so that the server links no linear algebra. */
#ifndef SERVER_SIBLING_H
#define SERVER_SIBLING_H

int sibling_run(const char *name, char **argv);

#endif
