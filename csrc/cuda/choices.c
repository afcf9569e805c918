#include "cuda/choices.h"

#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char FIRST[] = "measured on ", EACH[] = "matmul ";

void loom_choices_clear(loom_choices *choices) {
    free(choices->at);
    *choices = (loom_choices){0};
}

const loom_choice *loom_choices_find(const loom_choices *choices, const char *key) {
    for (size_t i = 0; i < choices->count; i++)
        if (!strcmp(choices->at[i].key, key)) return &choices->at[i];
    return NULL;
}

bool loom_choices_add(loom_choices *choices, const char *key, const void *value, loom_error *error) {
    LOOM_CHECK(*key && strlen(key) < LOOM_CHOICE_KEY && !strchr(key, ' ') && !loom_choices_find(choices, key));
    if (choices->count == choices->room) {
        const size_t room = choices->room ? 2 * choices->room : 16;
        loom_choice *at = realloc(choices->at, room * sizeof *at);
        if (!at) return loom_fail(error, "no memory for the choice of a matrix product");
        choices->at = at;
        choices->room = room;
    }
    loom_choice *choice = &choices->at[choices->count++];
    strcpy(choice->key, key);
    memcpy(choice->value, value, LOOM_CHOICE_BYTES);
    return true;
}

bool loom_choices_write(const loom_choices *choices, const char *measured_on, char **text, loom_error *error) {
    *text = NULL;
    if (!choices->count) return true;
    const size_t line = sizeof EACH + LOOM_CHOICE_KEY + 2 * LOOM_CHOICE_BYTES + 2;
    char *to = malloc(sizeof FIRST + strlen(measured_on) + choices->count * line + 2);
    if (!to) return loom_fail(error, "no memory for the choices of matrix products");
    *text = to;
    to += sprintf(to, "%s%s\n", FIRST, measured_on);
    for (size_t i = 0; i < choices->count; i++) {
        to += sprintf(to, "%s%s ", EACH, choices->at[i].key);
        for (int b = 0; b < LOOM_CHOICE_BYTES; b++) to += sprintf(to, "%02x", choices->at[i].value[b]);
        to += sprintf(to, "\n");
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- reading */

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "matmul KEY VALUE", `length` characters. */
static bool read_line(const char *line, size_t length, loom_choice *choice) {
    const size_t prefix = sizeof EACH - 1, digits = 2 * LOOM_CHOICE_BYTES;
    if (length < prefix + 1 + 1 + digits || memcmp(line, EACH, prefix) != 0) return false;
    const size_t key = length - prefix - 1 - digits;
    const char *value = line + length - digits;
    if (key >= LOOM_CHOICE_KEY || memchr(line + prefix, ' ', key) || value[-1] != ' ') return false;
    memcpy(choice->key, line + prefix, key);
    choice->key[key] = 0;
    for (int b = 0; b < LOOM_CHOICE_BYTES; b++) {
        const int high = digit(value[2 * b]), low = digit(value[2 * b + 1]);
        if (high < 0 || low < 0) return false;
        choice->value[b] = (unsigned char)(16 * high + low);
    }
    return true;
}

static bool read_lines(loom_choices *choices, const char *text, loom_error *error) {
    for (int number = 2; *text; number++) {
        const size_t length = strcspn(text, "\n");
        loom_choice choice;
        if (!read_line(text, length, &choice))
            return loom_fail(error, "line %d of the choices of matrix products is damaged", number);
        if (loom_choices_find(choices, choice.key))
            return loom_fail(error, "line %d of the choices of matrix products chooses %s a second time", number,
                             choice.key);
        if (!loom_choices_add(choices, choice.key, choice.value, error)) return false;
        text += length;
        if (*text) text++;
    }
    return true;
}

bool loom_choices_read(loom_choices *choices, const char *measured_on, const char *text, loom_error *error) {
    loom_choices read = {0};
    if (text) {
        const size_t prefix = sizeof FIRST - 1, length = strcspn(text, "\n");
        if (length < prefix || memcmp(text, FIRST, prefix) != 0)
            return loom_fail(error, "the choices of matrix products do not say on what they were measured");
        if (length - prefix != strlen(measured_on) || memcmp(text + prefix, measured_on, length - prefix) != 0)
            return loom_fail(error,
                             "the run's matrix products were chosen on %.*s, and this is %s: the run's bits cannot be "
                             "continued here",
                             (int)(length - prefix), text + prefix, measured_on);
        if (!read_lines(&read, text + length + (text[length] == '\n'), error)) {
            loom_choices_clear(&read);
            return false;
        }
    }
    loom_choices_clear(choices);
    *choices = read;
    return true;
}
