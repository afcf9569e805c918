#include "base/lock_holder.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

void loom_lock_word(char word[LOOM_LOCK_WORD], const char *text) {
    size_t n = 0;
    for (; text[n] && n < LOOM_LOCK_WORD - 1; n++) word[n] = isgraph((unsigned char)text[n]) ? text[n] : '?';
    if (n == 0) word[n++] = '?';
    word[n] = 0;
}

bool loom_lock_holder_read(loom_lock_holder *holder, const char *text, size_t size) {
    char line[LOOM_LOCK_LINE], host[LOOM_LOCK_WORD], boot[LOOM_LOCK_WORD], space[LOOM_LOCK_WORD];
    const char *end = memchr(text, '\n', size);
    const size_t length = end ? (size_t)(end - text) : sizeof line;
    if (length >= sizeof line) return false;
    memcpy(line, text, length);
    line[length] = 0;
    *holder = (loom_lock_holder){.process = 0};
    if (sscanf(line, "gptloom %64s %64s %64s %ld %lld %lld", host, boot, space, &holder->process, &holder->start,
               &holder->beat) != 6)
        return false;
    loom_lock_word(holder->host, host);
    loom_lock_word(holder->boot, boot);
    loom_lock_word(holder->space, space);
    return holder->process > 0 && holder->start >= -1 && holder->beat >= 0;
}

bool loom_lock_holder_is_begun(const char *text, size_t size) {
    static const char word[] = "gptloom ";
    const size_t most = sizeof word - 1;
    size_t zeros = 0;
    while (zeros < size && !text[zeros]) zeros++;
    if (zeros == size) return true;
    return size < LOOM_LOCK_LINE && !memchr(text, '\n', size) && !memcmp(text, word, size < most ? size : most);
}

int loom_lock_holder_write(const loom_lock_holder *holder, char line[LOOM_LOCK_LINE]) {
    return snprintf(line, LOOM_LOCK_LINE, "gptloom %s %s %s %ld %lld %lld\n", holder->host, holder->boot, holder->space,
                    holder->process, holder->start, holder->beat);
}

bool loom_lock_same_holder(const loom_lock_holder *a, const loom_lock_holder *b) {
    return a->process == b->process && a->start == b->start && !strcmp(a->boot, b->boot) &&
           !strcmp(a->space, b->space) && !strcmp(a->host, b->host);
}

bool loom_lock_same_system(const loom_lock_holder *a, const loom_lock_holder *b) {
    return !strcmp(a->boot, b->boot) && strcmp(a->boot, "?") != 0;
}

bool loom_lock_same_space(const loom_lock_holder *a, const loom_lock_holder *b) {
    return loom_lock_same_system(a, b) && !strcmp(a->space, b->space) && strcmp(a->space, "?") != 0;
}

long long loom_lock_silence(const loom_lock_holder *holder, long long now) {
    return holder->beat < now ? now - holder->beat : 0;
}
