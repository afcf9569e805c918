/* Errors as values.
 *
 * A function that can fail because of its user (a bad flag, a damaged file, too little memory) or because of the system
 * (a full disk) returns false and fills a loom_error. Its caller passes the error up unchanged, and the program prints
 * the one line and exits with code 2. A programming error is caught by an assertion and is never returned as an
 * error. */
#ifndef GPTLOOM_ERROR_H
#define GPTLOOM_ERROR_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_error {
    char message[1024]; /* one line: what is wrong, in which file or flag, and what to do */
} loom_error;

/* Writes the message (printf's format; newlines become spaces) and returns false, so that a function can end in
 * `return loom_fail(error, ...)`. A NULL error is allowed: the message is dropped. */
bool loom_fail(loom_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif
#endif
