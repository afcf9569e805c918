#include "base/flag.h"

#include "base/check.h"
#include "base/nearest.h"
#include "base/printable.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Values in messages are cut here, so that a damaged file cannot fill a line. */
#define SHOWN(text) LOOM_BRIEF(text, 120)

static void *field(const loom_flag *flag, void *target) {
    return (char *)target + flag->offset;
}

static const void *constant_field(const loom_flag *flag, const void *target) {
    return (const char *)target + flag->offset;
}

static char ***list_strings(const loom_flag *flag, void *target) {
    return field(flag, target);
}

static int *list_count(const loom_flag *flag, void *target) {
    return (int *)(void *)((char *)target + flag->count);
}

const loom_flag *loom_flag_find(const loom_flag *flags, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (flags[i].name[0] == name[0] && !strcmp(flags[i].name, name)) return &flags[i];
    return NULL;
}

/* ---------------------------------------------------------------------------------------------- storing and freeing */

/* Stores a number in the field, converted to the field's type. */
static void store(const loom_flag *flag, void *target, double number, int64_t integer) {
    switch (flag->type) {
    case LOOM_FLAG_BOOL: *(bool *)field(flag, target) = integer != 0; break;
    case LOOM_FLAG_INT: memcpy(field(flag, target), &integer, sizeof integer); break;
    case LOOM_FLAG_CHOICE: memcpy(field(flag, target), &(int){(int)integer}, sizeof(int)); break;
    case LOOM_FLAG_DOUBLE:
    case LOOM_FLAG_SIZE: memcpy(field(flag, target), &number, sizeof number); break;
    case LOOM_FLAG_STRING:
    case LOOM_FLAG_STRINGS: LOOM_CHECK(!"a string is not stored as a number"); break;
    }
}

/* Empties the field without freeing what it held. */
static void blank(const loom_flag *flag, void *target) {
    switch (flag->type) {
    case LOOM_FLAG_STRING: *(char **)field(flag, target) = NULL; break;
    case LOOM_FLAG_STRINGS:
        *list_strings(flag, target) = NULL;
        *list_count(flag, target) = 0;
        break;
    default: store(flag, target, flag->unset, (int64_t)flag->unset);
    }
}

static void release(const loom_flag *flag, void *target) {
    if (flag->type == LOOM_FLAG_STRING) free(*(char **)field(flag, target));
    if (flag->type == LOOM_FLAG_STRINGS) {
        char **strings = *list_strings(flag, target);
        for (int i = 0; i < *list_count(flag, target); i++) free(strings[i]);
        free(strings);
    }
    blank(flag, target);
}

void loom_flag_reset(const loom_flag *flag, void *target) {
    release(flag, target);
    if (!flag->default_value) return;
    /* Only the copy of a string can fail, for lack of memory. The field then stays unset. */
    const bool ok = loom_flag_set(flag, target, flag->default_value, "", NULL);
    LOOM_CHECK(ok || flag->type == LOOM_FLAG_STRING || flag->type == LOOM_FLAG_STRINGS);
}

void loom_flags_defaults(const loom_flag *flags, int n, void *target) {
    for (int i = 0; i < n; i++) {
        blank(&flags[i], target);
        loom_flag_reset(&flags[i], target);
    }
}

bool loom_flags_have_defaults(const loom_flag *flags, int n, const void *target, loom_error *error) {
    for (int i = 0; i < n; i++)
        if (flags[i].default_value && flags[i].type == LOOM_FLAG_STRING && loom_flag_is_unset(&flags[i], target))
            return loom_fail(error, "--%s: no memory to keep it", flags[i].name);
    return true;
}

void loom_flags_free(const loom_flag *flags, int n, void *target) {
    for (int i = 0; i < n; i++) release(&flags[i], target);
}

static double number_at(const loom_flag *flag, const void *target) {
    double number;
    memcpy(&number, constant_field(flag, target), sizeof number);
    return number;
}

static int64_t integer_at(const loom_flag *flag, const void *target) {
    int64_t integer = 0;
    int choice;
    switch (flag->type) {
    case LOOM_FLAG_BOOL: integer = *(const bool *)constant_field(flag, target); break;
    case LOOM_FLAG_CHOICE:
        memcpy(&choice, constant_field(flag, target), sizeof choice);
        integer = choice;
        break;
    default: memcpy(&integer, constant_field(flag, target), sizeof integer);
    }
    return integer;
}

bool loom_flag_is_unset(const loom_flag *flag, const void *target) {
    switch (flag->type) {
    case LOOM_FLAG_STRING: return !*(char *const *)constant_field(flag, target);
    case LOOM_FLAG_STRINGS: return *(const int *)(const void *)((const char *)target + flag->count) == 0;
    case LOOM_FLAG_INT:
    case LOOM_FLAG_CHOICE: return !flag->default_value && integer_at(flag, target) == (int64_t)flag->unset;
    case LOOM_FLAG_DOUBLE:
    case LOOM_FLAG_SIZE: return !flag->default_value && number_at(flag, target) == flag->unset;
    default: return false;
    }
}

/* ---------------------------------------------------------------------------------------------------------- parsing */

static bool in_range(const loom_flag *flag, double number, const char *text, const char *where, loom_error *error) {
    if (flag->min == 0 && flag->max == 0) return true;
    if (!(number >= flag->min))
        return loom_fail(error, "%s%s: %s is below %.15g", where, flag->name, SHOWN(text), flag->min);
    if (!(number <= flag->max))
        return loom_fail(error, "%s%s: %s is above the largest allowed, %.15g", where, flag->name, SHOWN(text),
                         flag->max);
    return true;
}

/* Numbers begin with a digit, a point or a minus: no spaces, no "inf", "nan" or hexadecimal. */
static bool looks_like_number(const char *text) {
    const char *digits = text + (*text == '-');
    return (isdigit((unsigned char)*digits) || *digits == '.') && !strpbrk(text, "xX");
}

static bool set_integer(const loom_flag *flag, void *target, const char *text, const char *where, loom_error *error) {
    char *end;
    errno = 0;
    const long long integer = strtoll(text, &end, 10);
    if (!looks_like_number(text) || *end || end == text)
        return loom_fail(error, "%s%s: '%s' is not a whole number", where, flag->name, SHOWN(text));
    if (errno == ERANGE && flag->min == 0 && flag->max == 0)
        return loom_fail(error, "%s%s: %s is too large", where, flag->name, SHOWN(text));
    const double beyond = errno == ERANGE ? (integer < 0 ? -HUGE_VAL : HUGE_VAL) : (double)integer;
    if (!in_range(flag, beyond, text, where, error)) return false;
    store(flag, target, 0, integer);
    return true;
}

/* The factor of "KiB" and the like; 0 where the unit is none. */
static double unit_of_size(const char *unit) {
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},       {"B", 1},        {"KiB", 0x1p10}, {"K", 0x1p10},   {"MiB", 0x1p20},
                 {"M", 0x1p20}, {"GiB", 0x1p30}, {"G", 0x1p30},   {"TiB", 0x1p40}, {"T", 0x1p40}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (!strcmp(unit, units[i].name)) return units[i].bytes;
    return 0;
}

static bool set_number(const loom_flag *flag, void *target, const char *text, const char *where, loom_error *error) {
    char *end;
    double number = strtod(text, &end);
    const bool is_size = flag->type == LOOM_FLAG_SIZE;
    const double unit = is_size ? unit_of_size(end) : *end ? 0 : 1;
    if (!looks_like_number(text) || end == text || unit == 0)
        return loom_fail(error, "%s%s: '%s' is not a %s", where, flag->name, SHOWN(text),
                         is_size ? "size; write bytes, or a number with KiB, MiB or GiB" : "number");
    number *= unit;
    if (is_size) number = floor(number);
    if (!in_range(flag, number, text, where, error)) return false;
    if (!isfinite(number)) return loom_fail(error, "%s%s: %s is too large", where, flag->name, SHOWN(text));
    store(flag, target, number, 0);
    return true;
}

static bool set_bool(const loom_flag *flag, void *target, const char *text, const char *where, loom_error *error) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (int i = 0; i < 8; i++) {
        if (strcmp(text, words[i])) continue;
        store(flag, target, 0, i % 2);
        return true;
    }
    return loom_fail(error, "%s%s: '%s' is neither true nor false", where, flag->name, SHOWN(text));
}

/* The place of `text` in the choices, or -1 with the error. */
static int find_choice(const loom_flag *flag, const char *text, const char *where, loom_error *error) {
    char list[256] = "";
    for (int i = 0; flag->choices[i]; i++) {
        if (!strcmp(flag->choices[i], text)) return i;
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", flag->choices[i]);
    }
    const char *nearest = loom_nearest_name(text, flag->choices);
    loom_fail(error, "%s%s: '%s' is none of %s%s%s%s", where, flag->name, SHOWN(text), list,
              nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
    return -1;
}

/* Adds a string and takes ownership of it. The array is doubled whenever the number of strings in it is a power of
 * two. */
static bool add_to_list(const loom_flag *flag, void *target, char *copy) {
    char ***strings = list_strings(flag, target);
    int *n = list_count(flag, target);
    if ((*n & (*n - 1)) == 0) {
        char **larger = *n > INT_MAX / 2 ? NULL : realloc(*strings, (*n ? 2 * (size_t)*n : 1) * sizeof *larger);
        if (!larger) return false;
        *strings = larger;
    }
    (*strings)[(*n)++] = copy;
    return true;
}

static bool set_string(const loom_flag *flag, void *target, const char *text, const char *where, loom_error *error) {
    if (!*text) return loom_fail(error, "%s%s: is empty; leave it out or give a value", where, flag->name);
    if (flag->choices && find_choice(flag, text, where, error) < 0) return false;
    char *copy = strdup(text);
    if (!copy || (flag->type == LOOM_FLAG_STRINGS && !add_to_list(flag, target, copy))) {
        free(copy);
        return loom_fail(error, "%s%s: no memory to keep it", where, flag->name);
    }
    if (flag->type == LOOM_FLAG_STRINGS) return true;
    char **string = field(flag, target);
    free(*string);
    *string = copy;
    return true;
}

bool loom_flag_set(const loom_flag *flag, void *target, const char *text, const char *where, loom_error *error) {
    int choice;
    switch (flag->type) {
    case LOOM_FLAG_BOOL: return set_bool(flag, target, text, where, error);
    case LOOM_FLAG_INT: return set_integer(flag, target, text, where, error);
    case LOOM_FLAG_DOUBLE:
    case LOOM_FLAG_SIZE: return set_number(flag, target, text, where, error);
    case LOOM_FLAG_CHOICE:
        choice = find_choice(flag, text, where, error);
        if (choice >= 0) store(flag, target, 0, choice);
        return choice >= 0;
    case LOOM_FLAG_STRING:
    case LOOM_FLAG_STRINGS: return set_string(flag, target, text, where, error);
    }
    LOOM_CHECK(!"a flag's type is one of the above");
    return false;
}

bool loom_flag_check(const loom_flag *flag, const void *target, const char *where, loom_error *error) {
    char text[64];
    double number;
    switch (flag->type) {
    case LOOM_FLAG_INT: number = (double)integer_at(flag, target); break;
    case LOOM_FLAG_DOUBLE:
    case LOOM_FLAG_SIZE: number = number_at(flag, target); break;
    default: return true;
    }
    if (loom_flag_is_unset(flag, target)) return true;
    loom_flag_text(flag, target, 0, text, sizeof text);
    return in_range(flag, number, text, where, error);
}

/* ---------------------------------------------------------------------------------------------------------- sources */

bool loom_flag_give(loom_flag_table *table, const loom_flag *flag, const char *text, const char *where,
                    loom_error *error) {
    const ptrdiff_t place = flag - table->flags;
    LOOM_CHECK(place >= 0 && place < table->n && table->n <= LOOM_FLAG_MAX_ROWS);
    if (!table->given[place]) {
        table->given[place] = true;
        if (flag->type == LOOM_FLAG_STRINGS) release(flag, table->target);
        for (int i = 0; i < LOOM_FLAG_MAX_OVERRIDES && flag->overrides[i]; i++)
            if (!loom_flag_given(table, flag->overrides[i]))
                loom_flag_reset(loom_flag_find(table->flags, table->n, flag->overrides[i]), table->target);
    }
    return loom_flag_set(flag, table->target, text, where, error);
}

bool loom_flag_given(const loom_flag_table *table, const char *name) {
    const loom_flag *flag = loom_flag_find(table->flags, table->n, name);
    LOOM_CHECK(flag);
    return table->given[flag - table->flags];
}

/* --------------------------------------------------------------------------------------------------------- printing */

/* The shortest decimal that reads back to the same double. */
static int print_number(char *text, size_t size, double number) {
    int length = 0;
    for (int digits = 6; digits <= 17; digits++) {
        length = snprintf(text, size, "%.*g", digits, number);
        if (length < 0 || (size_t)length >= size || strtod(text, NULL) == number) break;
    }
    return length;
}

bool loom_flag_text(const loom_flag *flag, const void *target, int index, char *text, size_t size) {
    const void *where = constant_field(flag, target);
    int length = -1;
    switch (flag->type) {
    case LOOM_FLAG_BOOL: length = snprintf(text, size, "%s", integer_at(flag, target) ? "true" : "false"); break;
    case LOOM_FLAG_INT: length = snprintf(text, size, "%lld", (long long)integer_at(flag, target)); break;
    case LOOM_FLAG_DOUBLE: length = print_number(text, size, number_at(flag, target)); break;
    case LOOM_FLAG_SIZE: length = snprintf(text, size, "%.0f", number_at(flag, target)); break;
    case LOOM_FLAG_CHOICE: length = snprintf(text, size, "%s", flag->choices[integer_at(flag, target)]); break;
    case LOOM_FLAG_STRING:
        length = snprintf(text, size, "%s", *(char *const *)where ? *(char *const *)where : "");
        break;
    case LOOM_FLAG_STRINGS: length = snprintf(text, size, "%s", (*(char **const *)where)[index]); break;
    }
    return length >= 0 && (size_t)length < size;
}
