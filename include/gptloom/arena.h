/* A single allocation, planned before it is made.
 *
 * The code that lays out memory runs twice: first with a measuring arena, which only counts and returns no memory, then
 * with an arena that has memory. So the plan always agrees with the run, and is known to the byte before anything is
 * allocated. */
#ifndef GPTLOOM_ARENA_H
#define GPTLOOM_ARENA_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_ARENA_ALIGNMENT = 256, LOOM_ARENA_MAX_ROWS = 24 };

typedef struct loom_arena_row {
    const char *name; /* a literal that names a row of the memory table: "parameters", "gradients", ... */
    size_t bytes;     /* all regions taken under that name, including the gaps after them */
} loom_arena_row;

typedef struct loom_arena {
    char *base;  /* NULL while measuring */
    size_t size; /* of the memory at base */
    size_t used; /* the bytes taken so far; at the end, the plan's total */
    bool fenced; /* host memory: gaps are poisoned under AddressSanitizer, regions hold NaNs in debug builds */
    loom_arena_row row[LOOM_ARENA_MAX_ROWS];
    int n_rows;
} loom_arena;

/* Makes a measuring arena. */
loom_arena loom_arena_measure(void);

/* Makes an arena over `size` bytes at `base`, which must be aligned to 256 bytes. `host` says that the CPU may access
 * the memory. */
loom_arena loom_arena_over(void *base, size_t size, bool host);

/* Takes `bytes`, aligned to 256 bytes, and counts them in the row `name`. A measuring arena returns NULL. Any other
 * arena must have enough room, as the plan ensures. A gap of 256 bytes follows each region. */
void *loom_arena_take(loom_arena *arena, const char *name, size_t bytes);

/* Moves `bytes` of what was taken under the name `from` to the row `as` of the memory table. */
void loom_arena_count(loom_arena *arena, const char *from, const char *as, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
