/* Who has a lock, as its file says: one line of words. The content is not trusted: anybody may have written it. */
#ifndef LOOM_BASE_LOCK_HOLDER_H
#define LOOM_BASE_LOCK_HOLDER_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_LOCK_WORD = 65, LOOM_LOCK_LINE = 512 };

typedef struct loom_lock_holder {
    /* The host, the boot of its system, and the namespace in which process numbers count; "?": unknown. */
    char host[LOOM_LOCK_WORD], boot[LOOM_LOCK_WORD], space[LOOM_LOCK_WORD];
    long process;
    long long start; /* start time of the process, in clock ticks since boot; -1: unknown */
    long long beat;  /* the heartbeat, in seconds since 1970 */
} loom_lock_holder;

/* Copies one word of text from the system or a file, without characters that would control a terminal. */
void loom_lock_word(char word[LOOM_LOCK_WORD], const char *text);

/* Returns false if the text is not one whole line of such words. The text need not end in a zero byte. */
bool loom_lock_holder_read(loom_lock_holder *holder, const char *text, size_t size);

/* Whether the text is only the beginning of such a line, or zeros, which a crash may leave. Its writer was killed, or
 * is still writing. */
bool loom_lock_holder_is_begun(const char *text, size_t size);

/* Writes the line and returns its length. */
int loom_lock_holder_write(const loom_lock_holder *holder, char line[LOOM_LOCK_LINE]);

bool loom_lock_same_holder(const loom_lock_holder *a, const loom_lock_holder *b);
/* Whether the two holders run on the same boot of the same system, so that flock() works between them. */
bool loom_lock_same_system(const loom_lock_holder *a, const loom_lock_holder *b);
/* Whether processes of these two can be told to live by their numbers. */
bool loom_lock_same_space(const loom_lock_holder *a, const loom_lock_holder *b);

/* The seconds since the holder's last heartbeat; 0 if its clock is ahead of ours. */
long long loom_lock_silence(const loom_lock_holder *holder, long long now);

#ifdef __cplusplus
}
#endif
#endif
