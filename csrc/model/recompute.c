#include "model/training.h"

#include "base/check.h"
#include "base/nearest.h"
#include "base/printable.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"none", "act", "norm", "block-attn", "block", "every:K", "sqrt", "auto", NULL};

static const char every[] = "every:", sets[] = "sets:";

static bool parse_every(const char *digits, int64_t *K) {
    char *end;
    errno = 0;
    *K = strtoll(digits, &end, 10);
    return *digits >= '1' && *digits <= '9' && !*end && errno == 0;
}

/* "1f*8,3*4" */
static bool parse_sets(const char *text, loom_recompute *recompute) {
    for (recompute->n_sets = 0; recompute->n_sets < LOOM_RECOMPUTE_MOST_SETS;) {
        const size_t digits = strspn(text, "0123456789abcdef");
        char *end;
        if (digits == 0 || digits > 8 || text[digits] != '*' || text[digits + 1] < '1' || text[digits + 1] > '9')
            return false;
        const unsigned long long values = strtoull(text, NULL, 16);
        errno = 0;
        const long long blocks = strtoll(text + digits + 1, &end, 10);
        if (errno != 0 || blocks > INT32_MAX) return false;
        recompute->set[recompute->n_sets++] = (loom_kept_set){(uint32_t)values, (int32_t)blocks};
        if (*end != ',') return !*end;
        text = end + 1;
    }
    return false;
}

bool loom_recompute_parse(const char *text, loom_recompute *recompute, loom_error *error) {
    *recompute = (loom_recompute){0};
    if (!strncmp(text, every, strlen(every))) {
        recompute->kind = LOOM_RECOMPUTE_EVERY;
        if (parse_every(text + strlen(every), &recompute->every)) return true;
        return loom_fail(error, "--recompute: '%s': every:K takes a number of blocks, as every:4",
                         LOOM_BRIEF(text, 40));
    }
    if (!strncmp(text, sets, strlen(sets))) {
        recompute->kind = LOOM_RECOMPUTE_SETS;
        if (parse_sets(text + strlen(sets), recompute)) return true;
        return loom_fail(error,
                         "--recompute: '%s': sets: takes up to %d sets of values, each a hexadecimal number and of how "
                         "many blocks it is, as sets:1f*8,3*4",
                         LOOM_BRIEF(text, 60), LOOM_RECOMPUTE_MOST_SETS);
    }
    for (int i = 0; names[i]; i++) {
        if (strcmp(text, names[i]) != 0 || i == LOOM_RECOMPUTE_EVERY) continue;
        recompute->kind = (loom_recompute_kind)i;
        return true;
    }
    const char *nearest = loom_nearest_name(text, names);
    return loom_fail(error,
                     "--recompute: '%s' is no policy; %s%s%sthere are none, act, norm, block-attn, block, every:K, "
                     "sqrt, auto, and sets: with what auto found before",
                     LOOM_BRIEF(text, 40), nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
}

static void name_sets(const loom_recompute *recompute, char name[LOOM_RECOMPUTE_NAME]) {
    int length = snprintf(name, LOOM_RECOMPUTE_NAME, "%s", sets);
    for (int i = 0; i < recompute->n_sets; i++) {
        length += snprintf(name + length, (size_t)(LOOM_RECOMPUTE_NAME - length), "%s%x*%d", i ? "," : "",
                           (unsigned)recompute->set[i].values, (int)recompute->set[i].blocks);
        LOOM_CHECK(length < LOOM_RECOMPUTE_NAME);
    }
}

void loom_recompute_name(const loom_recompute *recompute, char name[LOOM_RECOMPUTE_NAME]) {
    if (recompute->kind == LOOM_RECOMPUTE_EVERY)
        snprintf(name, LOOM_RECOMPUTE_NAME, "%s%lld", every, (long long)recompute->every);
    else if (recompute->kind == LOOM_RECOMPUTE_SETS)
        name_sets(recompute, name);
    else
        snprintf(name, LOOM_RECOMPUTE_NAME, "%s", names[recompute->kind]);
}

int64_t loom_recompute_segment(const loom_recompute *recompute, int64_t n_layer) {
    int64_t K = 1;
    switch (recompute->kind) {
    case LOOM_RECOMPUTE_EVERY: return recompute->every < n_layer ? recompute->every : n_layer;
    case LOOM_RECOMPUTE_SQRT:
        while (K * K < n_layer) K++;
        return K;
    case LOOM_RECOMPUTE_AUTO: LOOM_CHECK(!"a policy that was decided"); return 1;
    default: return 1;
    }
}

int loom_recompute_policies(int64_t n_layer, loom_recompute policies[LOOM_MOST_POLICIES]) {
    int n = 0;
    for (int kind = LOOM_RECOMPUTE_NONE; kind <= LOOM_RECOMPUTE_BLOCK; kind++)
        policies[n++] = (loom_recompute){.kind = (loom_recompute_kind)kind};
    const loom_recompute sqrt = {.kind = LOOM_RECOMPUTE_SQRT};
    const int64_t largest = loom_recompute_segment(&sqrt, n_layer);
    for (int64_t K = 2; K < largest; K++) policies[n++] = (loom_recompute){LOOM_RECOMPUTE_EVERY, K};
    if (largest > 1) policies[n++] = sqrt;
    LOOM_CHECK(n <= LOOM_MOST_POLICIES);
    return n;
}
