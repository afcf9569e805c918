/* One allocation, planned before it is made.
 *
 * The code that lays memory out runs twice over the same arena type: first on a measuring arena, which hands out no
 * memory and only counts; then on one with memory. So the plan and the run cannot disagree, and the plan is known
 * to the byte before anything is allocated. */
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
    const char *name; /* a row of the memory table, a literal: "parameters", "gradients", ... */
    size_t bytes;     /* all regions taken under that name, their gaps included */
} loom_arena_row;

typedef struct loom_arena {
    char *base;  /* NULL while measuring */
    size_t size; /* of the memory at base */
    size_t used; /* so far; at the end, the plan */
    bool fenced; /* host memory: gaps are poisoned under AddressSanitizer, regions hold NaNs in debug builds */
    loom_arena_row row[LOOM_ARENA_MAX_ROWS];
    int n_rows;
} loom_arena;

/* A measuring arena. */
loom_arena loom_arena_measure(void);

/* An arena over `size` bytes at `base`, aligned to 256. `host` says that the CPU may touch the memory. */
loom_arena loom_arena_over(void *base, size_t size, bool host);

/* Takes `bytes`, aligned to 256, counted in the row `name`. While measuring it returns NULL; otherwise the arena must
 * have room (the plan said so). Regions are followed by a gap of 256 bytes. */
void *loom_arena_take(loom_arena *arena, const char *name, size_t bytes);

/* Counts `bytes` of what was taken under one name in the row of another. */
void loom_arena_count(loom_arena *arena, const char *from, const char *as, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
