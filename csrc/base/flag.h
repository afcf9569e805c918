/* Named values from text: one row per value, from which come the flags, their help, a config file's keys and all
 * checking. A row says where its value lies in a struct, so that a table is constant and serves any number of them. */
#ifndef LOOM_BASE_FLAG_H
#define LOOM_BASE_FLAG_H

#include "gptloom/error.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a value is and the C type of its field. */
typedef enum loom_flag_type {
    LOOM_FLAG_BOOL,    /* bool; on a command line --NAME and --no-NAME */
    LOOM_FLAG_INT,     /* int64_t (or uint64_t where `min` is not negative) */
    LOOM_FLAG_DOUBLE,  /* double */
    LOOM_FLAG_SIZE,    /* double: bytes, written as 1500000, 800MiB or 1.5GiB */
    LOOM_FLAG_STRING,  /* char *, owned; one of `choices` where there are any */
    LOOM_FLAG_STRINGS, /* char **, owned, and an int that counts them; every setting adds one */
    LOOM_FLAG_CHOICE,  /* int or an enum: the place in `choices` */
} loom_flag_type;

enum { LOOM_FLAG_MAX_OVERRIDES = 6, LOOM_FLAG_MAX_ROWS = 80 };

typedef struct loom_flag {
    const char *name; /* "n-layer" */
    char letter;      /* a short form, -o; 0: none */
    loom_flag_type type;
    size_t offset;              /* of the field in the struct */
    double min, max;            /* numbers: both ends are allowed; both 0: any number */
    const char *const *choices; /* NULL-ended */
    const char *default_value;  /* the default, as text; NULL: unset until given */
    double unset;               /* numbers, choices: the value that stands for "not given" */
    const char *derived;        /* for the help: what the value is derived from if it is not given */
    const char *metavar, *group, *help;
    size_t count; /* STRINGS: the offset of the int that counts them */
    bool session; /* belongs to one call of the program; is not kept in a run's config file */
    const char *overrides[LOOM_FLAG_MAX_OVERRIDES]; /* what earlier sources said about these no longer holds once this
                                                       one is given ("steps" makes "epochs" void) */
} loom_flag;

/* A table with the struct that its values go to, and which of them one source (a command line, a file) has given. Start
 * a source with `given` all false. */
typedef struct loom_flag_table {
    const loom_flag *flags;
    int n;
    void *target;
    bool given[LOOM_FLAG_MAX_ROWS];
} loom_flag_table;

/* Returns NULL if no flag has that name. */
const loom_flag *loom_flag_find(const loom_flag *flags, int n, const char *name);

/* Sets the field to its default, or to unset, and frees what it held. The struct must have been zeroed or set
 * before. */
void loom_flag_reset(const loom_flag *flag, void *target);

/* Sets all fields to their defaults, in a struct that holds nothing yet. A string stays unset if there is no memory for
 * its copy; loom_flags_have_defaults() tells whether that happened, and must be asked before fields are read. */
void loom_flags_defaults(const loom_flag *flags, int n, void *target);
bool loom_flags_have_defaults(const loom_flag *flags, int n, const void *target, loom_error *error);

/* Frees all strings and leaves the fields empty. */
void loom_flags_free(const loom_flag *flags, int n, void *target);

/* Whether the field holds the value that stands for "not given". */
bool loom_flag_is_unset(const loom_flag *flag, const void *target);

/* Parses `text` strictly, checks it and stores it; on an error the field keeps its value. `where` begins the error's
 * line: "--" on a command line, "run.ini: " in a file. */
bool loom_flag_set(const loom_flag *flag, void *target, const char *text, const char *where, loom_error *error);

/* Checks a number that was stored without loom_flag_set against the row's range. */
bool loom_flag_check(const loom_flag *flag, const void *target, const char *where, loom_error *error);

/* As loom_flag_set, for one of several values of a source: the first value of a list replaces what earlier sources
 * gave, and what the flag overrides is reset unless this source has given it too. */
bool loom_flag_give(loom_flag_table *table, const loom_flag *flag, const char *text, const char *where,
                    loom_error *error);

/* Whether this source has given the flag of that name, which must be in the table. */
bool loom_flag_given(const loom_flag_table *table, const char *name);

/* The field as text that loom_flag_set reads back to the same value; of a list, its `index`-th. Returns false if it
 * does not fit. */
bool loom_flag_text(const loom_flag *flag, const void *target, int index, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
