/* What a file that is to be read as text holds, by its first bytes. */
#ifndef LOOM_DATA_CONTENT_H
#define LOOM_DATA_CONTENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How many of a file's first bytes are looked at. */
enum { LOOM_CONTENT_BYTES = 64 << 10 };

/* Why a file of `size` bytes is not to be read as text and what to do about it, "is compressed by gzip: ..."; NULL where
 * nothing speaks against it. `head` is its first `n` bytes. Text of any language and encoding without zero bytes is
 * text. */
const char *loom_content_refusal(const unsigned char *head, size_t n, uint64_t size);

/* What of text is worth a note, "is HTML: ..."; NULL: nothing. */
const char *loom_content_note(const unsigned char *head, size_t n);

#ifdef __cplusplus
}
#endif
#endif
