#include "gptloom/arena.h"

#include "base/check.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/asan_interface.h>
#else
#    define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

loom_arena loom_arena_measure(void) {
    return (loom_arena){0};
}

loom_arena loom_arena_over(void *base, size_t size, bool host) {
    LOOM_CHECK(base && (uintptr_t)base % LOOM_ARENA_ALIGNMENT == 0);
    return (loom_arena){.base = base, .size = size, .fenced = host};
}

static loom_arena_row *row_named(loom_arena *arena, const char *name) {
    for (int i = 0; i < arena->n_rows; i++)
        if (!strcmp(arena->row[i].name, name)) return &arena->row[i];
    LOOM_CHECK(arena->n_rows < LOOM_ARENA_MAX_ROWS);
    arena->row[arena->n_rows] = (loom_arena_row){.name = name};
    return &arena->row[arena->n_rows++];
}

void *loom_arena_take(loom_arena *arena, const char *name, size_t bytes) {
    const size_t mask = LOOM_ARENA_ALIGNMENT - 1;
    const size_t taken = ((bytes + mask) & ~mask) + LOOM_ARENA_ALIGNMENT;
    LOOM_CHECK(bytes <= SIZE_MAX / 2 && arena->used <= SIZE_MAX / 2);
    const size_t offset = arena->used;
    row_named(arena, name)->bytes += taken;
    arena->used += taken;
    if (!arena->base) return NULL;
    LOOM_CHECK(arena->used <= arena->size);
    char *region = arena->base + offset;
    if (arena->fenced) {
#ifdef LOOM_DEBUG_FILL
        /* The pattern is a signalling NaN in fp32, and each half of it is one in bf16, so that a read before the first
         * write shows. */
        for (size_t i = 0; i < taken / 4; i++) ((uint32_t *)region)[i] = 0x7FA07FA0u;
#endif
        ASAN_POISON_MEMORY_REGION(region + bytes, taken - bytes);
    }
    return region;
}

void loom_arena_count(loom_arena *arena, const char *from, const char *as, size_t bytes) {
    LOOM_CHECK(row_named(arena, from)->bytes >= bytes);
    row_named(arena, from)->bytes -= bytes;
    row_named(arena, as)->bytes += bytes;
}
