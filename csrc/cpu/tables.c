#include "cpu/tables.h"

#include "base/printable.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The instruction sets that the Makefile compiles for this architecture, the best first. The last value says whether
 * the library's fp32 products are faster than the set's own. It is fixed here instead of measured, so that a run has
 * the same bits on all machines with these instructions. With AVX2, on a shared Zen 3, training with our products was 3
 * to 16% faster than with oneDNN 2.6.3 (124M), 1% faster to 10% slower (6 layers of 384 channels), and neither faster
 * nor slower (4 layers of 128). With AVX-512, on a quiet Zen 4, ours were 4% (124M), 8% (6 layers of 384) and 12%
 * (4 layers of 128) slower, medians of 3 rounds: fp32 products are oneDNN's there. Products of types that are converted
 * to fp32 (bf16 without instructions for it, fp16) are ours everywhere. */
#if defined __x86_64__
#    define SETS(SET) SET(avx512, "AVX-512", true) SET(avx2, "AVX2", false) SET(sse2, "SSE2", false)
#elif defined __aarch64__
#    define SETS(SET) SET(neon, "NEON", false)
#else
#    define SETS(SET) SET(plain, "plain C", false)
#endif

#define DECLARE(name, ...)                                                                                             \
    const loom_ops *loom_##name##_ops(void);                                                                           \
    void loom_##name##_install_products(loom_ops *ops);                                                                \
    double loom_##name##_peak(int threads, double seconds);
DECLARE(definition)
DECLARE(oracle)
SETS(DECLARE)

const loom_cpu_table loom_cpu_definition = {.ops = loom_definition_ops, .peak = loom_definition_peak};
const loom_cpu_table loom_cpu_oracle = {.ops = loom_oracle_ops, .peak = loom_oracle_peak};

static const struct set {
    const char *name; /* the value of LOOM_INSTRUCTIONS that selects it */
    loom_cpu_table table;
} sets[] = {
#define ROW(name, instructions, library)                                                                               \
    {#name, {instructions, loom_##name##_ops, loom_##name##_install_products, library, loom_##name##_peak}},
    SETS(ROW)};
enum { COUNT = sizeof sets / sizeof *sets };

/* Whether the processor has the instructions that the Makefile compiles a set with. */
static bool processor_has(const char *name) {
#if defined __x86_64__
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(name, "avx2")) return avx2;
    if (!strcmp(name, "avx512"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return name != NULL; /* the baseline set, which every processor has */
}

/* Writes, for example, "avx512, avx2 and sse2". */
static void list_sets(char *to, size_t size) {
    size_t length = 0;
    *to = '\0';
    for (int i = 0; i < COUNT && length < size; i++)
        length += (size_t)snprintf(to + length, size - length, "%s%s",
                                   i == 0          ? ""
                                   : i < COUNT - 1 ? ", "
                                                   : " and ",
                                   sets[i].name);
}

const loom_cpu_table *loom_cpu_best_table(loom_error *error) {
    const char *asked = getenv("LOOM_INSTRUCTIONS");
    char all[64];
    if (asked && !*asked) asked = NULL;
    for (int i = 0; i < COUNT; i++) {
        if (asked ? strcmp(asked, sets[i].name) != 0 : !processor_has(sets[i].name)) continue;
        if (processor_has(sets[i].name)) return &sets[i].table;
        loom_fail(error, "LOOM_INSTRUCTIONS=%s: this processor does not have them", asked);
        return NULL;
    }
    list_sets(all, sizeof all);
    loom_fail(error,
              "LOOM_INSTRUCTIONS is to name a set of instructions that this program is compiled for, %s; not '%s'", all,
              LOOM_PRINTABLE(asked));
    return NULL;
}
