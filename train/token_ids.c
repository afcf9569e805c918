#include "token_ids.h"

#include "base/printable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool loom_token_ids_read(const char *text, int64_t vocab_size, int32_t *tokens, int64_t *n, loom_error *error) {
    static const char separators[] = " ,\t\n";
    for (text += strspn(text, separators); *text; text += strspn(text, separators)) {
        char *end;
        errno = 0;
        const long id = strtol(text, &end, 10);
        if (end == text || (*end && !strchr(separators, *end)))
            return loom_fail(error,
                             "--prompt: '%s' is no token id; this model is not of bytes and takes ids, '464 3280'",
                             LOOM_BRIEF(text, 40));
        if (errno || id < 0 || id >= vocab_size)
            return loom_fail(error, "--prompt: token id %.*s is not below the vocabulary's size, %lld",
                             (int)(end - text), text, (long long)vocab_size);
        tokens[(*n)++] = (int32_t)id;
        text = end;
    }
    return *n > 0 || loom_fail(error, "--prompt: holds no token id; leave it out to begin a text");
}
