#include "data/windows.h"

#include "base/check.h"
#include "base/random.h"

#include <string.h>

/* -------------------------------------------------------------------------------------------------------------- splits */

static bool fail_short(const loom_dataset *dataset, const char *part, int64_t tokens, double fraction, int64_t T,
                       loom_error *error) {
    const char *others = loom_dataset_files(dataset) > 1 ? " and others" : "";
    if (fraction == 0)
        return loom_fail(error,
                         "%s%s: has %lld tokens, and a window of --seq-len %lld needs %lld: give more data or a "
                         "smaller --seq-len",
                         loom_dataset_first_path(dataset), others, (long long)tokens, (long long)T, (long long)T + 1);
    return loom_fail(error,
                     "%s%s: of %lld tokens, --val-fraction %g leaves %lld for %s, and a window of --seq-len %lld "
                     "needs %lld: give more data, a smaller --seq-len or another --val-fraction",
                     loom_dataset_first_path(dataset), others, (long long)loom_dataset_tokens(dataset), fraction,
                     (long long)tokens, part, (long long)T, (long long)T + 1);
}

bool loom_split_by_fraction(const loom_dataset *dataset, int64_t vocab_size, double fraction, int64_t T,
                            loom_split *training, loom_split *validation, loom_error *error) {
    LOOM_CHECK(T >= 1 && T < INT64_MAX);
    if (!(fraction >= 0 && fraction < 1))
        return loom_fail(error, "--val-fraction %g: must be at least 0 and less than 1", fraction);
    const int64_t tokens = loom_dataset_tokens(dataset);
    const int64_t kept = tokens - (int64_t)((double)tokens * fraction + 0.5);
    *training = (loom_split){dataset, 0, kept, vocab_size};
    *validation = (loom_split){dataset, kept, tokens - kept, vocab_size};
    if (training->tokens <= T) return fail_short(dataset, "training", training->tokens, fraction, T, error);
    if (fraction > 0 && validation->tokens <= T)
        return fail_short(dataset, "validation", validation->tokens, fraction, T, error);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- windows */

int64_t loom_split_windows(const loom_split *split, int64_t T) {
    LOOM_CHECK(T >= 1);
    if (split->tokens < 2) return 0;
    return (split->tokens - 2) / T + 1;
}

int64_t loom_window_pairs(const loom_split *split, int64_t T, int64_t w) {
    const int64_t left = split->tokens - 1 - w * T;
    return left < T ? left : T;
}

/* Reads `n` consecutive pairs: the inputs are tokens first .. first + n - 1, the targets are those one position
 * later. */
static bool read_pairs(const loom_split *split, int64_t first, int64_t n, int32_t *inputs, int32_t *targets,
                       loom_error *error) {
    enum { PAIRS = 2048 };
    int32_t tokens[PAIRS + 1];
    for (int64_t done = 0; done < n; done += PAIRS) {
        const int64_t taken = n - done < PAIRS ? n - done : PAIRS;
        if (!loom_dataset_read(split->dataset, split->first + first + done, taken + 1, split->vocab_size, tokens,
                               error))
            return false;
        memcpy(inputs + done, tokens, (size_t)taken * sizeof *inputs);
        memcpy(targets + done, tokens + 1, (size_t)taken * sizeof *targets);
    }
    return true;
}

/* The one window that contains the ring's seam is read in two pieces. Padding inputs are 0, an id of every vocabulary.
 * They come after all other inputs, where causal attention hides them. */
bool loom_split_window(const loom_split *split, int64_t T, int64_t shift, int64_t w, int32_t *inputs, int32_t *targets,
                       loom_error *error) {
    const int64_t pairs = split->tokens - 1;
    LOOM_CHECK(w >= 0 && w < loom_split_windows(split, T) && shift >= 0 && shift < pairs);
    const int64_t n = loom_window_pairs(split, T, w);
    const int64_t before_seam = pairs - shift;
    const int64_t first = w * T < before_seam ? shift + w * T : w * T - before_seam;
    const int64_t head = n < pairs - first ? n : pairs - first;
    if (!read_pairs(split, first, head, inputs, targets, error)) return false;
    if (n > head && !read_pairs(split, 0, n - head, inputs + head, targets + head, error)) return false;
    for (int64_t i = n; i < T; i++) {
        inputs[i] = 0;
        targets[i] = -1;
    }
    return true;
}

/* --------------------------------------------------------------------------------------------------------------- order
 * Both draw from LOOM_RANDOM_ORDER at the epoch. A Feistel round takes the indices whose upper half is its number, the
 * shift the one after all rounds. */
enum { ROUNDS = 8 };

/* One pass over 2 * `half` bits: halves change places, one mixed into the other by a random function of it. */
static uint64_t feistel(uint64_t seed, uint32_t epoch, int half, uint64_t x) {
    const uint64_t mask = ((uint64_t)1 << half) - 1;
    uint64_t left = x >> half, right = x & mask;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        const loom_random4 random = loom_random(seed, LOOM_RANDOM_ORDER, epoch, round << 32 | right);
        const uint64_t mixed = left ^ (random.word[0] & mask);
        left = right;
        right = mixed;
    }
    return left << half | right;
}

/* The network permutes 0 .. 4^half - 1, the smallest such range that holds n. Following the permutation from i < n
 * until it is back below n permutes 0 .. n-1: the walk ends, since its cycle leads back to i, and takes under 4 passes
 * on average, since 4^half < 4n. */
int64_t loom_shuffle(uint64_t seed, uint32_t epoch, int64_t n, int64_t i) {
    LOOM_CHECK(i >= 0 && i < n && n <= (int64_t)1 << 62);
    int half = 0;
    while ((uint64_t)1 << 2 * half < (uint64_t)n) half++;
    if (half == 0) return 0;
    uint64_t x = (uint64_t)i;
    do x = feistel(seed, epoch, half, x);
    while (x >= (uint64_t)n);
    return (int64_t)x;
}

int64_t loom_window_shift(uint64_t seed, uint32_t epoch, int64_t pairs) {
    const loom_random4 random = loom_random(seed, LOOM_RANDOM_ORDER, epoch, (uint64_t)ROUNDS << 32);
    return (int64_t)(((uint64_t)random.word[0] << 32 | random.word[1]) % (uint64_t)pairs);
}
