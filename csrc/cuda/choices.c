#include "cuda/choices.h"

#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char FIRST[] = LOOM_CHOICES_BEGIN;

static const char *const names[LOOM_CHOICE_KINDS] = {
    [LOOM_CHOICE_MATMUL] = "matmul", [LOOM_CHOICE_DBIAS] = "dbias", [LOOM_CHOICE_ATTENTION] = "attention"};

void loom_choices_clear(loom_choices *choices) {
    free(choices->at);
    *choices = (loom_choices){0};
}

static loom_choice *find(const loom_choices *choices, loom_choice_kind kind, const char *key) {
    for (size_t i = 0; i < choices->count; i++)
        if (choices->at[i].kind == kind && !strcmp(choices->at[i].key, key)) return &choices->at[i];
    return NULL;
}

const char *loom_choices_take(loom_choices *choices, loom_choice_kind kind, const char *key) {
    loom_choice *choice = find(choices, kind, key);
    if (!choice) return NULL;
    choice->taken = true;
    return choice->value;
}

static bool append(loom_choices *choices, const loom_choice *choice, loom_error *error) {
    if (choices->count == choices->room) {
        const size_t room = choices->room ? 2 * choices->room : 16;
        loom_choice *at = realloc(choices->at, room * sizeof *at);
        if (!at) return loom_fail(error, "no memory for the run's choices");
        choices->at = at;
        choices->room = room;
    }
    choices->at[choices->count++] = *choice;
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

/* Whether a choice of the kind may have this value. */
static bool is_value(loom_choice_kind kind, const char *value) {
    switch (kind) {
    case LOOM_CHOICE_MATMUL:
        return strlen(value) == 2 * LOOM_CHOICE_ALGORITHM && strspn(value, "0123456789abcdef") == strlen(value);
    case LOOM_CHOICE_DBIAS: return !strcmp(value, "kernel") || !strcmp(value, "epilogue");
    case LOOM_CHOICE_ATTENTION: return is_engine(value);
    default: return false;
    }
}

bool loom_choices_add(loom_choices *choices, loom_choice_kind kind, const char *key, const char *value,
                      loom_error *error) {
    loom_choice choice = {.kind = kind, .taken = true};
    LOOM_CHECK(*key && strlen(key) < sizeof choice.key && !strchr(key, ' ') && !find(choices, kind, key));
    LOOM_CHECK(strlen(value) < sizeof choice.value && is_value(kind, value));
    strcpy(choice.key, key);
    strcpy(choice.value, value);
    return append(choices, &choice, error);
}

/* ------------------------------------------------------------------------------------------------------------ writing */

bool loom_choices_write(const loom_choices *choices, const char *measured_on, char **text, loom_error *error) {
    *text = NULL;
    if (!choices->count) return true;
    size_t bytes = sizeof FIRST + strlen(measured_on) + 1;
    for (size_t i = 0; i < choices->count; i++) {
        const loom_choice *c = &choices->at[i];
        bytes += strlen(names[c->kind]) + strlen(c->key) + strlen(c->value) + 3;
    }
    char *to = malloc(bytes);
    if (!to) return loom_fail(error, "no memory for the run's choices");
    *text = to;
    to += sprintf(to, "%s%s\n", FIRST, measured_on);
    for (size_t i = 0; i < choices->count; i++) {
        const loom_choice *c = &choices->at[i];
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
static bool read_line(const char *line, size_t length, loom_choice *choice) {
    const char *const end = line + length;
    char kind[16];
    *choice = (loom_choice){0};
    if (!read_word(&line, end, ' ', kind, sizeof kind) ||
        !read_word(&line, end, ' ', choice->key, sizeof choice->key) ||
        !read_word(&line, end, '\n', choice->value, sizeof choice->value))
        return false;
    for (int k = 0; k < LOOM_CHOICE_KINDS; k++)
        if (!strcmp(kind, names[k])) {
            choice->kind = (loom_choice_kind)k;
            return is_value(choice->kind, choice->value);
        }
    return false;
}

static bool read_lines(loom_choices *choices, const char *text, loom_error *error) {
    for (int number = 2; *text; number++) {
        const size_t length = strcspn(text, "\n");
        loom_choice choice;
        if (!read_line(text, length, &choice))
            return loom_fail(error, "line %d of the run's choices is damaged", number);
        if (find(choices, choice.kind, choice.key))
            return loom_fail(error, "line %d of the run's choices is a second one for %s %.200s", number,
                             names[choice.kind], choice.key);
        if (!append(choices, &choice, error)) return false;
        text += length;
        if (*text) text++;
    }
    return true;
}

static bool read_text(loom_choices *choices, const char *measured_on, const char *text, loom_error *error) {
    const size_t prefix = sizeof FIRST - 1, length = strcspn(text, "\n");
    if (length < prefix || memcmp(text, FIRST, prefix) != 0)
        return loom_fail(error, "the run's choices do not say on what they were measured");
    if (length - prefix != strlen(measured_on) || memcmp(text + prefix, measured_on, length - prefix) != 0)
        return loom_fail(error,
                         "the run's algorithms were chosen on %.*s, and this is %s: the run's bits cannot be continued "
                         "here",
                         (int)(length - prefix), text + prefix, measured_on);
    return read_lines(choices, text + length + (text[length] == '\n'), error);
}

/* What was taken among `before` must not have been chosen otherwise. */
static bool keep_taken(loom_choices *choices, const loom_choices *before, loom_error *error) {
    for (size_t i = 0; i < before->count; i++) {
        const loom_choice *was = &before->at[i];
        if (!was->taken) continue;
        loom_choice *is = find(choices, was->kind, was->key);
        if (!is && !append(choices, was, error)) return false;
        if (is && strcmp(is->value, was->value) != 0)
            return loom_fail(error, "the run's choice for %s %.200s comes after another one was made", names[was->kind],
                             was->key);
        if (is) is->taken = true;
    }
    return true;
}

bool loom_choices_read(loom_choices *choices, const char *measured_on, const char *text, loom_error *error) {
    loom_choices read = {0};
    const bool ok = (!text || read_text(&read, measured_on, text, error)) && keep_taken(&read, choices, error);
    loom_choices_clear(ok ? choices : &read);
    if (ok) *choices = read;
    return ok;
}
