/* In which order threads, and blocks, take their turns. */
#ifndef LOOM_EMULATION_SCHEDULE_H
#define LOOM_EMULATION_SCHEDULE_H

#include <cstdint>

namespace simt {

enum class order : unsigned char { FORWARD, REVERSE, RANDOM };

struct schedule {
    order kind = order::FORWARD;
    uint64_t seed = 0;
};

/* The current one: of the environment or of emulation_set_schedule. */
schedule current_schedule();

/* CPU threads that blocks may be spread over. */
int current_threads();

/* Bits that depend on every bit of x (the finaliser of SplitMix64). */
static inline uint64_t scramble(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

} // namespace simt
#endif
