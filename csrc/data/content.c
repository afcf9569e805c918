#include "data/content.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

/* ---------------------------------------------------------------------------------------------------- known formats */

#define UNPACK  "; unpack it and name what is in it"
#define CONVERT "; write its text to a file, or its tokens to a .bin shard"

typedef struct signature {
    size_t offset, n;
    const char *bytes, *refusal;
} signature;

/* None of them begins a text: those of letters alone are followed by a byte that no text has there. The longer of two
 * that begin alike comes first. */
static const signature signatures[] = {
    {0, 2, "\x1f\x8b", "is compressed by gzip: gunzip it first"},
    {0, 4, "\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first, zstd -d"},
    {0, 6, "\xfd\x37zXZ\0", "is compressed by xz: unpack it first, xz -d"},
    {4, 6, "1AY&SY", "is compressed by bzip2: bunzip2 it first"},
    {0, 4, "\x04\x22\x4d\x18", "is compressed by lz4: unpack it first, lz4 -d"},
    {0, 4, "PK\3\4", "is a zip archive (as .docx, .xlsx, .npz and PyTorch's files are)" UNPACK},
    {0, 4, "PK\5\6", "is an empty zip archive" UNPACK},
    {0, 6, "7z\xbc\xaf\x27\x1c", "is a 7z archive" UNPACK},
    {0, 6, "Rar!\x1a\x07", "is a rar archive" UNPACK},
    {257, 5, "ustar", "is a tar archive" UNPACK},
    {0, 4, "\x88\xd8\x34\x01", "is a token shard of llm.c, whose name has to end in .bin: rename it"},
    {0, 8, "ARROW1\0\0", "is an Arrow file" CONVERT},
    {0, 6, "\x93NUMPY", "is a NumPy array" CONVERT},
    {0, 8, "\x89HDF\r\n\x1a\n", "is an HDF5 file" CONVERT},
    {0, 16, "SQLite format 3\0", "is an SQLite database" CONVERT},
    {0, 4, "Obj\1", "is an Avro file" CONVERT},
    {0, 5, "%PDF-", "is a PDF: extract its text first, pdftotext"},
    {0, 8, "\x89PNG\r\n\x1a\n", "is a picture (PNG), not text"},
    {0, 3, "\xff\xd8\xff", "is a picture (JPEG), not text"},
    {0, 5,
     "\x7f"
     "ELF\1",
     "is a program, not text"},
    {0, 5,
     "\x7f"
     "ELF\2",
     "is a program, not text"},
    {0, 4, "\xff\xfe\0\0", "is text in UTF-32: convert it first, iconv -f utf-32 -t utf-8"},
    {0, 4, "\0\0\xfe\xff", "is text in UTF-32: convert it first, iconv -f utf-32 -t utf-8"},
    {0, 2, "\xff\xfe", "is text in UTF-16: convert it first, iconv -f utf-16 -t utf-8"},
    {0, 2, "\xfe\xff", "is text in UTF-16: convert it first, iconv -f utf-16 -t utf-8"},
};

/* A text could begin with PAR1 or GGUF, but would have no zero byte among its first 256 bytes. */
static bool begins_binary(const unsigned char *head, size_t n, const char *word) {
    return n >= 16 && !memcmp(head, word, 4) && memchr(head, 0, n < 256 ? n : 256);
}

/* The file begins with the length of a JSON header, in eight bytes; the header is not longer than the file. */
static bool is_safetensors(const unsigned char *head, size_t n, uint64_t size) {
    uint64_t length = 0;
    if (n < 10 || head[8] != '{') return false;
    for (int i = 0; i < 8; i++) length |= (uint64_t)head[i] << 8 * i;
    return length >= 2 && length <= size - 8;
}

/* Protocols 2 to 5 begin with their number, which no text has in second place. */
static bool is_pickle(const unsigned char *head, size_t n) {
    return n >= 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5;
}

/* In encrypted, compressed and random bytes a tenth are control characters, in programs and numbers more. Text has
 * almost none except those for layout, colours and shifts between alphabets, which are not counted. */
static bool is_binary(const unsigned char *head, size_t n) {
    size_t controls = 0;
    for (size_t i = 0; i < n; i++)
        controls += head[i] < 0x08 || (head[i] >= 0x10 && head[i] < 0x20 && head[i] != 0x1a && head[i] != 0x1b) ||
                    head[i] == 0x7f;
    return n >= 64 && controls >= n / 20;
}

#define WIDE(bits, order)                                                                                              \
    "is text in UTF-" #bits ", or numbers of " #bits " bits: convert text first, iconv -f utf-" #bits order            \
    " -t utf-8; token shards end in .bin"

/* What is in units of 32 or 16 bits, little end first or last, has its zeros in some places of each and not in others.
 * Of 16 bits that is so only where most of it is ASCII or Latin: nothing as sure tells Chinese from bytes. */
static const char *wide_refusal(const unsigned char *head, size_t n) {
    size_t zeros[4] = {0};
    bool most[4];
    if (n < 64) return NULL;
    for (size_t i = 0; i < n; i++) zeros[i % 4] += head[i] == 0;
    for (int i = 0; i < 4; i++) most[i] = zeros[i] >= n / 4 * 3 / 4;
    if (most[2] && most[3] && !most[0]) return WIDE(32, "le");
    if (most[0] && most[1] && !most[3]) return WIDE(32, "be");
    const size_t even = zeros[0] + zeros[2], odd = zeros[1] + zeros[3], many = n / 2 * 3 / 4;
    if (odd >= many && even < many) return WIDE(16, "le");
    if (even >= many && odd < many) return WIDE(16, "be");
    return NULL;
}

const char *loom_content_refusal(const unsigned char *head, size_t n, uint64_t size) {
    for (size_t i = 0; i < sizeof signatures / sizeof *signatures; i++) {
        const signature *s = &signatures[i];
        if (n >= s->offset + s->n && !memcmp(head + s->offset, s->bytes, s->n)) return s->refusal;
    }
    if (begins_binary(head, n, "PAR1")) return "is a Parquet file" CONVERT;
    if (begins_binary(head, n, "GGUF")) return "is a model in GGUF, not text";
    if (is_safetensors(head, n, size))
        return "holds tensors (safetensors), not text; --init begins with a model's weights";
    if (is_pickle(head, n)) return "is a pickle of Python" CONVERT;
    const char *wide = wide_refusal(head, n);
    if (wide) return wide;
    if (is_binary(head, n)) return "is binary, not text";
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------ texts of note */

static bool begins(const unsigned char *text, size_t n, const char *word) {
    const size_t length = strlen(word);
    return n >= length && !strncasecmp((const char *)text, word, length);
}

const char *loom_content_note(const unsigned char *head, size_t n) {
    if (n >= 3 && !memcmp(head, "\xef\xbb\xbf", 3)) head += 3, n -= 3;
    while (n > 0 && (*head == ' ' || (*head >= '\t' && *head <= '\r'))) head++, n--;
    if (begins(head, n, "<!doctype html") || begins(head, n, "<html"))
        return "is HTML: its tags are trained on as text";
    const unsigned char *end = n ? memchr(head, '\n', n) : NULL;
    if (end && end > head && end[-1] == '\r') end--;
    if (begins(head, n, "{\"") && end && end[-1] == '}')
        return "is lines of JSON: their keys and quotes are trained on as text";
    return NULL;
}
