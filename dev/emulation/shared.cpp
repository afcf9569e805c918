#include "shared.h"

#include "fiber.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

namespace simt {

constexpr size_t CAPACITY = 512 * 1024;
constexpr size_t ZONE = 512;               /* a row of a large tile: the commonest step too far */
constexpr unsigned CANARY = 0xFFEDFFEDu;   /* NaN too, but not poison */
constexpr size_t STATIC_LIMIT = 48 * 1024; /* what ptxas refuses to exceed */

void allocate_shared(shared_memory *shared) {
    void *at = mmap(nullptr, CAPACITY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        fprintf(stderr, "gptloom: no memory for the emulation's shared memory\n");
        abort();
    }
    shared->base = static_cast<unsigned char *>(at);
}

void free_shared(shared_memory *shared) {
    munmap(shared->base, CAPACITY);
}

/* In sanitizer builds AddressSanitizer watches the red zones and stops at the access itself. In others they hold
 * canaries that are looked at when the block has ended. */
#ifdef LOOM_ASAN
bool is_out_of_bounds(const void *p, size_t bytes) {
    return bytes > 0 && __asan_region_is_poisoned(const_cast<void *>(p), bytes);
}
static void open_region(void *at, size_t bytes) {
    ASAN_UNPOISON_MEMORY_REGION(at, bytes);
}
static void close_region(void *at, size_t bytes) {
    ASAN_POISON_MEMORY_REGION(at, bytes);
}
#else
bool is_out_of_bounds(const void *, size_t) {
    return false;
}
static void open_region(void *, size_t) {
}
static void close_region(void *at, size_t bytes) {
    for (size_t i = 0; i + 4 <= bytes; i += 4) memcpy(static_cast<unsigned char *>(at) + i, &CANARY, 4);
}
#endif

/* Bytes from a part's start to the red zone behind it. */
static size_t rounded(size_t bytes) {
    return (bytes + 15) / 16 * 16;
}

/* The next part. Parts are aligned to 16 bytes and to no more, as CUDA promises no more. */
static unsigned char *add_part(shared_memory *shared, const array_site *site, size_t bytes) {
    if (shared->count == (int)(sizeof shared->part / sizeof *shared->part) ||
        shared->top + rounded(bytes) + ZONE > CAPACITY)
        return nullptr;
    unsigned char *at = shared->base + shared->top;
    open_region(at, bytes);
    memset(at, 0xFF, bytes);
    close_region(at + bytes, rounded(bytes) - bytes + ZONE);
    shared->top += rounded(bytes) + ZONE;
    shared->part[shared->count++] = {site, at, bytes};
    return at;
}

void begin_shared(shared_memory *shared, size_t dynamic_bytes) {
    close_region(shared->base, ZONE + 16);
    shared->top = ZONE + 16;
    shared->count = 0;
    shared->static_bytes = 0;
    shared->dynamic_bytes = dynamic_bytes;
    if (dynamic_bytes > 0) add_part(shared, nullptr, dynamic_bytes);
}

void *find_shared(shared_memory *shared, const array_site *site, char *problem, size_t capacity) {
    for (int i = 0; i < shared->count; i++)
        if (shared->part[i].site == site) return shared->part[i].at;
    shared->static_bytes += rounded(site->bytes);
    if (shared->static_bytes > STATIC_LIMIT) {
        snprintf(problem, capacity, "%zu bytes of shared arrays, more than the 48 KiB that CUDA has",
                 shared->static_bytes);
    } else if (shared->static_bytes + shared->dynamic_bytes > shared->limit) {
        snprintf(problem, capacity, "%zu bytes of shared arrays and %zu of dynamic shared memory, more than %zu",
                 shared->static_bytes, shared->dynamic_bytes, shared->limit);
    } else {
        unsigned char *at = add_part(shared, site, site->bytes);
        if (at) return at;
        snprintf(problem, capacity, "more than 32 shared arrays");
    }
    return nullptr;
}

bool is_shared(const shared_memory *shared, const void *p, size_t bytes) {
    const unsigned char *at = static_cast<const unsigned char *>(p);
    for (int i = 0; i < shared->count; i++)
        if (at >= shared->part[i].at && at + bytes <= shared->part[i].at + shared->part[i].bytes) return true;
    return false;
}

#ifdef LOOM_ASAN
std::string check_shared(const shared_memory *) {
    return "";
}
#else
/* The offset in a red zone of its first changed word, or -1. */
static long first_change(const unsigned char *zone, size_t bytes) {
    for (size_t i = 0; i + 4 <= bytes; i += 4)
        if (memcmp(zone + i, &CANARY, 4) != 0) return (long)i;
    return -1;
}

std::string check_shared(const shared_memory *shared) {
    for (int i = 0; i < shared->count; i++) {
        const array_site *site = shared->part[i].site;
        const unsigned char *at = shared->part[i].at;
        const size_t bytes = shared->part[i].bytes;
        long before = i == 0 ? first_change(shared->base, ZONE + 16) : -1;
        long behind = first_change(at + bytes, rounded(bytes) - bytes + ZONE);
        if (before < 0 && behind < 0) continue;
        const long offset = before >= 0 ? before - (at - shared->base) : (long)bytes + behind;
        char text[256];
        if (site)
            snprintf(text, sizeof text,
                     "the block wrote outside of shared array '%s' (%zu bytes) of %s:%d, at byte %ld", site->name,
                     bytes, site->at.file, site->at.line, offset);
        else
            snprintf(text, sizeof text,
                     "the block wrote outside of the %zu bytes of dynamic shared memory, at byte %ld", bytes, offset);
        return text;
    }
    return "";
}
#endif

} // namespace simt
