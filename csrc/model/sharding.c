#include "model/training.h"

static bool is_power_of_two(int64_t n) {
    return n > 0 && (n & (n - 1)) == 0;
}

static int64_t ranks_of(const loom_sharding *sharding) {
    return sharding->ranks > 0 ? sharding->ranks : 1;
}

bool loom_ranks_can_be_alike(int64_t ranks) {
    return is_power_of_two(ranks) && ranks <= LOOM_MAX_DETERMINISTIC_RANKS;
}

bool loom_micro_batches_divide(int64_t sequences, int64_t B, const loom_sharding *sharding) {
    const int64_t ranks = ranks_of(sharding);
    if (sequences % B != 0 || sequences / B % ranks != 0) return false;
    return !sharding->deterministic || (is_power_of_two(ranks) && is_power_of_two(sequences / B));
}

int64_t loom_micro_batches(int64_t sequences, int64_t B, const loom_sharding *sharding) {
    return sequences / B / ranks_of(sharding);
}
