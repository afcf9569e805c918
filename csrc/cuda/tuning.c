#include "cuda/tuning.h"

#include "base/check.h"
#include "gptloom/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char FIRST[] = LOOM_TUNING_BEGIN;

static const char *const names[LOOM_TUNING_KINDS] = {
    [LOOM_TUNING_MATMUL] = "matmul", [LOOM_TUNING_DBIAS] = "dbias", [LOOM_TUNING_ATTENTION] = "attention"};

void loom_tuning_clear(loom_tuning *tuning) {
    free(tuning->at);
    *tuning = (loom_tuning){0};
}

static loom_tuning_entry *find(const loom_tuning *tuning, loom_tuning_kind kind, const char *key) {
    for (size_t i = 0; i < tuning->count; i++)
        if (tuning->at[i].kind == kind && !strcmp(tuning->at[i].key, key)) return &tuning->at[i];
    return NULL;
}

const char *loom_tuning_take(loom_tuning *tuning, loom_tuning_kind kind, const char *key) {
    loom_tuning_entry *entry = find(tuning, kind, key);
    if (!entry) return NULL;
    entry->taken = true;
    return entry->value;
}

static bool append(loom_tuning *tuning, const loom_tuning_entry *entry, loom_error *error) {
    if (tuning->count == tuning->room) {
        const size_t room = tuning->room ? 2 * tuning->room : 16;
        loom_tuning_entry *at = realloc(tuning->at, room * sizeof *at);
        if (!at) return loom_fail(error, "no memory for the tuning cache");
        tuning->at = at;
        tuning->room = room;
    }
    tuning->at[tuning->count++] = *entry;
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- values */

/* What follows a whole number; NULL if there is none. */
static const char *skip_number(const char *c) {
    c += *c == '-';
    const size_t digits = strspn(c, "0123456789");
    return digits ? c + digits : NULL;
}

/* "engine8" or "engine8,24=3,27=1". */
static bool is_engine(const char *value) {
    const char *c = strncmp(value, "engine", 6) ? NULL : skip_number(value + 6);
    while (c && *c == ',') {
        c = skip_number(c + 1);
        c = c && *c == '=' ? skip_number(c + 1) : NULL;
    }
    return c && !*c;
}

/* Whether an entry of the kind may have this value. */
static bool is_value(loom_tuning_kind kind, const char *value) {
    switch (kind) {
    case LOOM_TUNING_MATMUL:
        return strlen(value) == 2 * LOOM_TUNING_ALGORITHM && strspn(value, "0123456789abcdef") == strlen(value);
    case LOOM_TUNING_DBIAS: return !strcmp(value, "kernel") || !strcmp(value, "epilogue");
    case LOOM_TUNING_ATTENTION: return is_engine(value);
    default: return false;
    }
}

bool loom_tuning_add(loom_tuning *tuning, loom_tuning_kind kind, const char *key, const char *value,
                     loom_error *error) {
    loom_tuning_entry entry = {.kind = kind, .taken = true};
    LOOM_CHECK(*key && strlen(key) < sizeof entry.key && !strchr(key, ' ') && !find(tuning, kind, key));
    LOOM_CHECK(strlen(value) < sizeof entry.value && is_value(kind, value));
    strcpy(entry.key, key);
    strcpy(entry.value, value);
    return append(tuning, &entry, error);
}

/* ------------------------------------------------------------------------------------------------------------ writing */

bool loom_tuning_write(const loom_tuning *tuning, const char *measured_on, char **text, loom_error *error) {
    *text = NULL;
    if (!tuning->count) return true;
    size_t bytes = sizeof FIRST + strlen(measured_on) + 1;
    for (size_t i = 0; i < tuning->count; i++) {
        const loom_tuning_entry *c = &tuning->at[i];
        bytes += strlen(names[c->kind]) + strlen(c->key) + strlen(c->value) + 3;
    }
    char *to = malloc(bytes);
    if (!to) return loom_fail(error, "no memory for the tuning cache");
    *text = to;
    to += sprintf(to, "%s%s\n", FIRST, measured_on);
    for (size_t i = 0; i < tuning->count; i++) {
        const loom_tuning_entry *c = &tuning->at[i];
        to += sprintf(to, "%s %s %s\n", names[c->kind], c->key, c->value);
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- reading */

/* Copies a word that ends with `end`, and goes to what follows; false if it is empty or longer than `size` allows. */
static bool read_word(const char **from, const char *line_end, char end, char *word, size_t size) {
    const char *at = memchr(*from, end, (size_t)(line_end - *from));
    const size_t length = (size_t)((at ? at : line_end) - *from);
    if (!length || length >= size || (!at && end == ' ')) return false;
    memcpy(word, *from, length);
    word[length] = 0;
    *from += length + 1;
    return true;
}

/* "KIND KEY VALUE", without the line's end. */
static bool read_line(const char *line, size_t length, loom_tuning_entry *entry) {
    const char *const end = line + length;
    char kind[16];
    *entry = (loom_tuning_entry){0};
    if (!read_word(&line, end, ' ', kind, sizeof kind) || !read_word(&line, end, ' ', entry->key, sizeof entry->key) ||
        !read_word(&line, end, '\n', entry->value, sizeof entry->value))
        return false;
    for (int k = 0; k < LOOM_TUNING_KINDS; k++)
        if (!strcmp(kind, names[k])) {
            entry->kind = (loom_tuning_kind)k;
            return is_value(entry->kind, entry->value);
        }
    return false;
}

static bool read_lines(loom_tuning *tuning, const char *text, loom_error *error) {
    for (int number = 2; *text; number++) {
        const size_t length = strcspn(text, "\n");
        loom_tuning_entry entry;
        if (!read_line(text, length, &entry)) return loom_fail(error, "line %d of the tuning cache is damaged", number);
        if (find(tuning, entry.kind, entry.key))
            return loom_fail(error, "line %d of the tuning cache is a second entry for %s %.200s", number,
                             names[entry.kind], entry.key);
        if (!append(tuning, &entry, error)) return false;
        text += length;
        if (*text) text++;
    }
    return true;
}

static bool read_text(loom_tuning *tuning, const char *measured_on, const char *text, loom_error *error) {
    const size_t prefix = sizeof FIRST - 1, length = strcspn(text, "\n");
    if (length < prefix || memcmp(text, FIRST, prefix) != 0)
        return loom_fail(error, "the tuning cache does not say on what it was measured");
    if (length - prefix != strlen(measured_on) || memcmp(text + prefix, measured_on, length - prefix) != 0)
        return loom_fail(error,
                         "the run's tuning cache was measured on %.*s, and this is %s: the run's bits cannot be "
                         "continued here",
                         (int)(length - prefix), text + prefix, measured_on);
    return read_lines(tuning, text + length + (text[length] == '\n'), error);
}

/* What was taken among `before` must not have another value. */
static bool keep_taken(loom_tuning *tuning, const loom_tuning *before, loom_error *error) {
    for (size_t i = 0; i < before->count; i++) {
        const loom_tuning_entry *was = &before->at[i];
        if (!was->taken) continue;
        loom_tuning_entry *is = find(tuning, was->kind, was->key);
        if (!is && !append(tuning, was, error)) return false;
        if (is && strcmp(is->value, was->value) != 0)
            return loom_fail(error, "the tuning cache's entry for %s %.200s is not the one that is in use",
                             names[was->kind], was->key);
        if (is) is->taken = true;
    }
    return true;
}

bool loom_tuning_read(loom_tuning *tuning, const char *measured_on, const char *text, loom_error *error) {
    loom_tuning read = {0};
    const bool ok = (!text || read_text(&read, measured_on, text, error)) && keep_taken(&read, tuning, error);
    loom_tuning_clear(ok ? tuning : &read);
    if (ok) *tuning = read;
    return ok;
}
