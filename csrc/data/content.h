/* What a file that is to be read as text contains, judged by its first bytes. */
#ifndef LOOM_DATA_CONTENT_H
#define LOOM_DATA_CONTENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How many of a file's first bytes are looked at. */
enum { LOOM_CONTENT_BYTES = 64 << 10 };

/* Returns why a file of `size` bytes is not to be read as text and what to do about it, as in "is compressed by gzip:
 * ...", or NULL if nothing speaks against it. `head` is its first `n` bytes. Text of any language and encoding counts
 * as text if it has no zero bytes. */
const char *loom_content_refusal(const unsigned char *head, size_t n, uint64_t size);

/* Returns a remark about text that may not be what the user meant, as in "is HTML: ...", or NULL if there is none. */
const char *loom_content_note(const unsigned char *head, size_t n);

#ifdef __cplusplus
}
#endif
#endif
