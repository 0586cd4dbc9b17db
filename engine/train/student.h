/* student.h - a coded model as variables: stored parameters of its matrices, and its norms.
 *
 * Owns      variables, and dense weights of one block, until student_free().
 * Borrows   the coded source and its parameters until student_free().
 * Thread    the network's.
 * Fails     -ENOMEM, -EBADMSG from the source, -ENOTSUP (nothing is coded).
 * Cost      five floats a stored parameter, and the weights of one block.
 *
 * Codes, shapes, dense matrices, biases and embeddings stay what they are. */
#ifndef ENGINE_TRAIN_STUDENT_H
#define ENGINE_TRAIN_STUDENT_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/train/adam.h"
#include "engine/train/network.h"
#include "engine/train/params.h"

struct checkpoint_writer;
struct source;
struct student;

struct student_options {
    bool groups_only; /* scales and biases of groups, neither super-scales nor norms */
    int n_threads;
};

/* ends: those of the source; its final norm's weights are written by student_move(). */
int student_new(struct student **ret, struct source *src, struct params *params,
                struct params_ends *ends, const struct student_options *options, struct error *err);
void student_free(struct student *s); /* NULL is allowed */

struct network_blocks student_blocks(struct student *s);
/* Where network_backward() is to add the final norm's gradient; NULL: nowhere. */
void student_final_grads(struct student *s, float **ret_w, float **ret_b);

void student_move(struct student *s, const struct adam_step *step);
void student_keep(struct student *s);
void student_back(struct student *s);

/* Shows every array that a later run needs to go on, always in one order; stops at a failure. */
int student_visit(struct student *s,
                  int (*visit)(void *arg, void *bytes, size_t n, struct error *err), void *arg,
                  struct error *err);

/* Adds the kept matrices and norms to a checkpoint. */
int student_write(const struct student *s, struct checkpoint_writer *w, struct error *err);
/* Whether student_write() writes this tensor. */
bool student_has(const struct student *s, const char *name);

#endif
