/* Who has a lock, as its file says it: one line of words. Anybody may have written that. */
#ifndef LOOM_BASE_LOCK_HOLDER_H
#define LOOM_BASE_LOCK_HOLDER_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_LOCK_WORD = 65, LOOM_LOCK_LINE = 512 };

typedef struct loom_lock_holder {
    /* the running system, and in it the space in which process numbers count; "?": not known */
    char host[LOOM_LOCK_WORD], boot[LOOM_LOCK_WORD], space[LOOM_LOCK_WORD];
    long process;
    long long start; /* of the process, in ticks since the system's start; -1: not known */
    long long beat;  /* seconds since 1970 */
} loom_lock_holder;

/* One word of what the system or a file says, with nothing in it that a terminal would obey. */
void loom_lock_word(char word[LOOM_LOCK_WORD], const char *text);

/* False where the text, which need not end in a zero, is no whole line of such words. */
bool loom_lock_holder_read(loom_lock_holder *holder, const char *text, size_t size);

/* Whether this is a beginning of such a line and no more of it, or zeros, which a crash may leave: its writer was killed, or
 * is still at it. */
bool loom_lock_holder_is_begun(const char *text, size_t size);

/* The line, and its length. */
int loom_lock_holder_write(const loom_lock_holder *holder, char line[LOOM_LOCK_LINE]);

bool loom_lock_same_holder(const loom_lock_holder *a, const loom_lock_holder *b);
/* Whether what a file says was written under the system that runs here, whose flock() then counts for both. */
bool loom_lock_same_system(const loom_lock_holder *a, const loom_lock_holder *b);
/* Whether processes of these two can be told to live by their numbers. */
bool loom_lock_same_space(const loom_lock_holder *a, const loom_lock_holder *b);

/* Seconds since its last sign of life: none where its clock is ahead of ours. */
long long loom_lock_silence(const loom_lock_holder *holder, long long now);

#ifdef __cplusplus
}
#endif
#endif
