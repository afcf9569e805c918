#include "model/gpt.h"
#include "gptloom/random.h"

#include "base/check.h"
#include "base/math.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --------------------------------------------------------------------------------------------------------- next logits */

static bool synchronize(loom_gpt *g, loom_error *error) {
    return g->hooks.synchronize ? g->hooks.synchronize(g->hooks.user, error)
                                : g->device->synchronize(g->device, g->ctx.stream, error);
}

/* The tokens run in pieces whose lengths are powers of two: those shapes were planned, and no others are needed. */
bool loom_gpt_next_logits(loom_gpt *g, const int32_t *tokens, int64_t n, int64_t past, float *logits,
                          loom_error *error) {
    LOOM_CHECK(g->generates && n >= 1 && past >= 0 && past + n <= g->T);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= g->config.vocab_size)
            return loom_fail(error, "token id %d is not below the vocabulary's %lld", (int)tokens[i],
                             (long long)g->config.vocab_size);
    while (n > 0) {
        int64_t piece = 1;
        while (piece * 2 <= n) piece *= 2;
        g->device->copy(g->device, g->ctx.stream, g->tokens, tokens, loom_bytes(piece, LOOM_I32), LOOM_HOST_TO_DEVICE);
        loom_gpt_infer(g, piece, past);
        if (!synchronize(g, error)) return false;
        tokens += piece;
        past += piece;
        n -= piece;
    }
    const int64_t V = g->config.vocab_size;
    const loom_view last = loom_run_last_logits(g);
    if (last.dtype == LOOM_F64) {
        LOOM_CHECK(g->device->host_memory); /* the oracle */
        for (int64_t v = 0; v < V; v++) logits[v] = (float)((const double *)last.data)[v];
    } else {
        g->device->copy(g->device, g->ctx.stream, logits, last.data, loom_bytes(V, LOOM_F32), LOOM_DEVICE_TO_HOST);
    }
    return g->device->synchronize(g->device, g->ctx.stream, error);
}

/* ------------------------------------------------------------------------------------------------------------- sampling */

static int32_t most_probable(const float *logits, int64_t n) {
    int32_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    return best;
}

static int larger_first(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* What top-k and top-p (Holtzman et al., 2020) keep: all logits above `least`, and of those equal to it the first so
 * many. */
typedef struct selection {
    float least;
    int64_t equal;
} selection;

static float weight(float logit, float best, const loom_sampling *sampling) {
    return (float)loom_exp((double)((logit - best) / sampling->temperature));
}

static selection select_logits(const float *logits, int64_t n, float best, const loom_sampling *sampling,
                               float *sorted) {
    int64_t count = sampling->top_k > 0 && sampling->top_k < n ? sampling->top_k : n, equal = 0;
    if (count == n && sampling->top_p >= 1) return (selection){-INFINITY, 0};
    memcpy(sorted, logits, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, larger_first);
    double total = 0, mass = 0;
    for (int64_t i = 0; i < count; i++) total += (double)weight(sorted[i], best, sampling);
    for (int64_t i = 0; i < count && sampling->top_p < 1; i++) {
        mass += (double)weight(sorted[i], best, sampling);
        if (mass >= (double)sampling->top_p * total) count = i + 1;
    }
    while (equal < count && sorted[count - 1 - equal] == sorted[count - 1]) equal++;
    return (selection){sorted[count - 1], equal};
}

int32_t loom_sample_logits(const float *logits, int64_t n, const loom_sampling *sampling, uint32_t step,
                           float *scratch) {
    const int32_t best = most_probable(logits, n);
    bool usable = logits[best] > -INFINITY;
    for (int64_t i = 0; i < n; i++) usable &= logits[i] < INFINITY; /* which NaN is not */
    if (!usable) return -1;
    if (sampling->temperature <= 0) return best;
    float *probability = scratch, *sorted = scratch + n;
    selection keep = select_logits(logits, n, logits[best], sampling, sorted);
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        const bool in = logits[i] > keep.least || (logits[i] == keep.least && keep.equal-- > 0);
        probability[i] = in ? weight(logits[i], logits[best], sampling) : 0;
        total += (double)probability[i];
    }
    const loom_random4 random = loom_random(sampling->seed, LOOM_RANDOM_SAMPLE, step, 0);
    double left = total * (double)loom_random_uniform(random.word[0]);
    int32_t chosen = best;
    for (int64_t i = 0; i < n; i++) {
        if (probability[i] <= 0) continue;
        chosen = (int32_t)i;
        left -= (double)probability[i];
        if (left < 0) break;
    }
    return chosen;
}

/* ----------------------------------------------------------------------------------------------------------- generation */

/* The tokens the model has seen, at most T of them. */
typedef struct context {
    int32_t *token;
    int64_t n;   /* tokens */
    int64_t run; /* of which the model has run so many */
} context;

/* When the context is full, its newer half stays and must run again: its positions are others now. */
static void append(context *c, int32_t token, int64_t T) {
    if (c->n == T) {
        const int64_t kept = T / 2;
        memmove(c->token, c->token + (T - kept), (size_t)kept * sizeof *c->token);
        c->n = kept;
        c->run = 0;
    }
    c->token[c->n++] = token;
}

bool loom_gpt_generate(loom_gpt *g, const int32_t *prompt, int64_t n_prompt, int64_t count,
                       const loom_sampling *sampling, bool (*emit)(void *user, int32_t token), void *user,
                       loom_error *error) {
    LOOM_CHECK(n_prompt >= 1);
    const int64_t V = g->config.vocab_size;
    context c = {.token = malloc((size_t)g->T * sizeof(int32_t))};
    float *logits = malloc(3 * (size_t)V * sizeof *logits);
    bool ok = c.token && logits;
    if (!ok) loom_fail(error, "no memory to sample");
    if (ok) {
        c.n = n_prompt < g->T ? n_prompt : g->T;
        memcpy(c.token, prompt + (n_prompt - c.n), (size_t)c.n * sizeof *c.token);
    }
    for (int64_t i = 0; ok && i < count; i++) {
        ok = loom_gpt_next_logits(g, c.token + c.run, c.n - c.run, c.run, logits, error);
        if (!ok) break;
        c.run = c.n;
        const int32_t next = loom_sample_logits(logits, V, sampling, (uint32_t)i, logits + V);
        if (next < 0)
            ok = loom_fail(error, "the logits are no finite numbers: are the weights damaged, or too large for %s?",
                           loom_dtype_name(g->precision.storage));
        if (!ok || !emit(user, next)) break;
        append(&c, next, g->T);
    }
    free(c.token);
    free(logits);
    return ok;
}
