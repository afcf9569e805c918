/* LOOM_SECRET: what ranks of one training know and nobody else. It proves who speaks by HMAC-SHA-256, which libcrypto
 * computes; that is loaded only where there is a secret. */
#ifndef LOOM_COMM_SECRET_H
#define LOOM_COMM_SECRET_H

#include "gptloom/error.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_SECRET_CODE = 32 }; /* bytes of an authentication code */

typedef struct loom_secret {
    const char *key; /* NULL: there is none, and every code is zeros */
    size_t length;
    const void *(*sha256)(void);
    unsigned char *(*hmac)(const void *hash, const void *key, int key_length, const unsigned char *data, size_t bytes,
                           unsigned char *code, unsigned *code_bytes);
    int (*differ)(const void *a, const void *b, size_t bytes); /* in constant time */
} loom_secret;

/* The environment's secret. False where there is one but no libcrypto. */
bool loom_secret_read(loom_secret *secret, loom_error *error);

/* The code of some data; false if the library refuses. And whether a code is the right one. */
bool loom_secret_sign(const loom_secret *secret, const void *data, size_t bytes, unsigned char code[LOOM_SECRET_CODE]);
bool loom_secret_holds(const loom_secret *secret, const void *data, size_t bytes,
                       const unsigned char code[LOOM_SECRET_CODE]);

#ifdef __cplusplus
}
#endif
#endif
