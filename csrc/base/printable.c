#include "base/printable.h"

#include "base/check.h"

#include <stdint.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------- characters */

/* The length of a character, from its first byte; 0 for a byte with which no character begins. */
static int length_from_first(unsigned char byte) {
    if (byte < 0x80) return 1;
    if (byte >= 0xC2 && byte <= 0xDF) return 2;
    if (byte >= 0xE0 && byte <= 0xEF) return 3;
    if (byte >= 0xF0 && byte <= 0xF4) return 4;
    return 0;
}

/* Characters that control a terminal (C1 controls), change the writing direction, or count as line ends although a
 * terminal does not show them so. */
static bool steers(uint32_t point) {
    static const struct {
        uint32_t first, last;
    } ranges[] = {{0x80, 0x9F},     {0x61C, 0x61C},   {0x200E, 0x200F},  {0x2028, 0x202E},
                  {0x2066, 0x206F}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE007F}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (point >= ranges[i].first && point <= ranges[i].last) return true;
    return false;
}

/* Whether a whole character may be shown: it is in its shortest encoding, and is neither a surrogate nor a control
 * character. */
static bool is_harmless(const unsigned char *bytes, int n) {
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (n == 1) return bytes[0] >= 0x20 && bytes[0] != 0x7F;
    uint32_t point = bytes[0] & (0xFFu >> (n + 1));
    for (int i = 1; i < n; i++) point = point << 6 | (bytes[i] & 0x3Fu);
    const bool is_surrogate = point >= 0xD800 && point <= 0xDFFF;
    const bool is_none = point > 0x10FFFF || is_surrogate || (point & 0xFFFE) == 0xFFFE;
    return point >= smallest[n] && !is_none && !steers(point);
}

/* Most text consists of such bytes. */
static bool is_plain(unsigned char byte) {
    return byte >= 0x20 && byte < 0x7F;
}

int loom_printable_length(const char *text) {
    const unsigned char *bytes = (const unsigned char *)text;
    if (is_plain(bytes[0])) return 1;
    const int length = length_from_first(bytes[0]);
    for (int i = 1; i < length; i++)
        if ((bytes[i] & 0xC0) != 0x80) return 0;
    return length > 0 && is_harmless(bytes, length) ? length : 0;
}

/* --------------------------------------------------------------------------------------------------------- one line */

enum { LONGEST_PIECE = 5 };

/* Writes what the next bytes of a text are replaced by, and advances `text` past them. */
static int next_piece(const char **text, char piece[LONGEST_PIECE]) {
    static const char digits[] = "0123456789abcdef";
    const unsigned char byte = (unsigned char)**text;
    const int length = loom_printable_length(*text);
    if (byte == '\n' || byte == '\r' || byte == '\t') {
        *piece = ' ';
        (*text)++;
        return 1;
    }
    if (length > 0) {
        memcpy(piece, *text, (size_t)length);
        *text += length;
        return length;
    }
    memcpy(piece, (char[4]){'\\', 'x', digits[byte >> 4], digits[byte & 15]}, 4);
    (*text)++;
    return 4;
}

/* The number of plain bytes that the text begins with, at most `most`. */
static size_t plain_beginning(const char *text, size_t most) {
    size_t n = 0;
    while (n < most && is_plain((unsigned char)text[n])) n++;
    return n;
}

static size_t printed_length(const char *text) {
    char piece[LONGEST_PIECE];
    size_t length = 0;
    for (;;) {
        const size_t plain = plain_beginning(text, SIZE_MAX);
        length += plain;
        text += plain;
        if (!*text) return length;
        length += (size_t)next_piece(&text, piece);
    }
}

/* Writes as many whole pieces as fit into `room`, advances `text` past them and returns their length. */
static size_t put_pieces(char *out, size_t room, const char **text) {
    char piece[LONGEST_PIECE];
    size_t used = 0;
    for (;;) {
        const size_t plain = plain_beginning(*text, room - used);
        memcpy(out + used, *text, plain);
        used += plain;
        *text += plain;
        if (!**text) return used;
        const char *next = *text;
        const size_t length = (size_t)next_piece(&next, piece);
        if (length > room - used) return used;
        memcpy(out + used, piece, length);
        used += length;
        *text = next;
    }
}

/* A text that does not fit keeps its last `tail` bytes and loses the part before them. */
static char *fit(char *out, size_t size, const char *text, const char *gap, size_t tail) {
    char piece[LONGEST_PIECE];
    const char *rest = text;
    LOOM_CHECK(size > strlen(gap) + tail);
    const size_t fitting = put_pieces(out, size - 1, &rest);
    out[fitting] = 0;
    if (!*rest) return out;
    size_t length = fitting + printed_length(rest), used = put_pieces(out, size - 1 - strlen(gap) - tail, &text);
    for (length -= used; length > tail;) length -= (size_t)next_piece(&text, piece);
    memcpy(out + used, gap, strlen(gap));
    used += strlen(gap);
    out[used + put_pieces(out + used, size - 1 - used, &text)] = 0;
    return out;
}

char *loom_printable_text(char *out, size_t size, const char *text) {
    return fit(out, size, text, "...", 0);
}

char *loom_printable_ends(char *out, size_t size, const char *text) {
    return fit(out, size, text, " ... ", size / 2);
}

bool loom_is_printable(const char *text) {
    int length;
    while ((length = loom_printable_length(text)) > 0) text += length;
    return !*text;
}

/* ------------------------------------------------------------------------------------------------------ shell words */

char *loom_shell_word(char *out, size_t size, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+=:,@%";
    const bool printable = loom_is_printable(word);
    const char *quote = *word && strspn(word, plain) == strlen(word) ? "" : printable ? "'" : "$'";
    size_t used = (size_t)snprintf(out, size, "%s", quote);
    while (*word && used < size) {
        const int length = loom_printable_length(word);
        const unsigned char byte = (unsigned char)*word;
        if (!*quote || (printable && byte != '\''))
            used += (size_t)snprintf(out + used, size - used, "%c", *word);
        else if (printable)
            used += (size_t)snprintf(out + used, size - used, "'\\''");
        else if (length == 0 || byte == '\'' || byte == '\\')
            used += (size_t)snprintf(out + used, size - used, "\\%03o",
                                     byte); /* three digits: the next one is no part of it */
        else
            used += (size_t)snprintf(out + used, size - used, "%.*s", length, word);
        word += printable || length == 0 ? 1 : length;
    }
    if (*quote && used < size) snprintf(out + used, size - used, "'");
    return out;
}

/* ----------------------------------------------------------------------------------------------------- byte by byte */

static void print_replacement(FILE *out) {
    fputs("\xEF\xBF\xBD", out);
}

void loom_printable_byte(loom_printable *state, unsigned char byte, FILE *out) {
    if (state->n > 0 && (byte & 0xC0) != 0x80) loom_printable_end(state, out);
    if (state->n == 0) state->needed = length_from_first(byte);
    if (state->needed == 0) {
        print_replacement(out);
        return;
    }
    state->bytes[state->n++] = byte;
    if (state->n < state->needed) return;
    if (is_harmless(state->bytes, state->n) || byte == '\n' || byte == '\t')
        fwrite(state->bytes, 1, (size_t)state->n, out);
    else
        print_replacement(out);
    state->n = 0;
}

void loom_printable_end(loom_printable *state, FILE *out) {
    if (state->n > 0) print_replacement(out);
    state->n = 0;
}
