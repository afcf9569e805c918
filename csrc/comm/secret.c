#include "comm/secret.h"

#include "base/library.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* LOOM_CRYPTO names another one. Never unloaded: OpenSSL leaves handlers of the process's end. */
static void *load(const char **named) {
    static const char *const names[] = {"libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so"};
    const char *asked = getenv("LOOM_CRYPTO");
    *named = asked && *asked ? asked : names[0];
    void *library = dlopen(*named, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 1; !library && *named == names[0] && i < sizeof names / sizeof *names; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

bool loom_secret_read(loom_secret *secret, loom_error *error) {
    const char *key = getenv("LOOM_SECRET"), *named;
    *secret = (loom_secret){0};
    if (!key || !*key) return true;
    void *library = load(&named);
    if (!library || !loom_library_find(library, "EVP_sha256", &secret->sha256) ||
        !loom_library_find(library, "HMAC", &secret->hmac) ||
        !loom_library_find(library, "CRYPTO_memcmp", &secret->differ))
        return loom_fail(error,
                         "LOOM_SECRET is set, but %s, which checks it, %s; install OpenSSL (apt-get install libssl3), "
                         "name its library with LOOM_CRYPTO=/path/to/libcrypto.so.3, or unset LOOM_SECRET on all ranks",
                         named, library ? "lacks its functions" : "cannot be loaded");
    secret->key = key;
    secret->length = strlen(key);
    return true;
}

bool loom_secret_sign(const loom_secret *secret, const void *data, size_t bytes, unsigned char code[LOOM_SECRET_CODE]) {
    unsigned length = LOOM_SECRET_CODE;
    memset(code, 0, LOOM_SECRET_CODE);
    return !secret->key ||
           (secret->hmac(secret->sha256(), secret->key, (int)secret->length, data, bytes, code, &length) &&
            length == LOOM_SECRET_CODE);
}

bool loom_secret_holds(const loom_secret *secret, const void *data, size_t bytes,
                       const unsigned char code[LOOM_SECRET_CODE]) {
    unsigned char right[LOOM_SECRET_CODE];
    return loom_secret_sign(secret, data, bytes, right) &&
           (secret->key ? secret->differ(right, code, sizeof right) : memcmp(right, code, sizeof right)) == 0;
}
