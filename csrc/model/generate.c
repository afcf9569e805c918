#include "model/gpt.h"
#include "base/random.h"

#include "base/check.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------- logits and probabilities */

static bool synchronize(loom_gpt *g, loom_error *error) {
    return g->hooks.synchronize ? g->hooks.synchronize(g->hooks.user, error)
                                : g->device->synchronize(g->device, g->ctx.stream, error);
}

/* The tokens run in pieces whose lengths are powers of two: those shapes were planned, and no others are needed. */
static bool run_tokens(loom_gpt *g, const int32_t *tokens, int64_t n, int64_t past, loom_error *error) {
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
    return true;
}

/* Copies what lies in the place of the last logits, of the vocabulary. */
static void copy_last(loom_gpt *g, float *to) {
    const int64_t V = g->config.vocab_size;
    const loom_view last = loom_run_last_logits(g);
    if (last.dtype == LOOM_F64) {
        LOOM_CHECK(g->device->host_memory); /* the oracle */
        for (int64_t v = 0; v < V; v++) to[v] = (float)((const double *)last.data)[v];
    } else {
        g->device->copy(g->device, g->ctx.stream, to, last.data, loom_bytes(V, LOOM_F32), LOOM_DEVICE_TO_HOST);
    }
}

bool loom_gpt_next_logits(loom_gpt *g, const int32_t *tokens, int64_t n, int64_t past, float *logits,
                          loom_error *error) {
    if (!run_tokens(g, tokens, n, past, error)) return false;
    copy_last(g, logits);
    return g->device->synchronize(g->device, g->ctx.stream, error);
}

bool loom_gpt_next_probabilities(loom_gpt *g, const int32_t *tokens, int64_t n, int64_t past, float temperature,
                                 float *logits, float *probabilities, loom_error *error) {
    LOOM_CHECK(temperature > 0);
    if (!run_tokens(g, tokens, n, past, error)) return false;
    copy_last(g, logits);
    loom_run_last_probabilities(g, fminf(1 / temperature, FLT_MAX));
    copy_last(g, probabilities);
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

/* `sorted` becomes pairs of a logit and its probability. */
static selection select_tokens(const float *logits, const float *probabilities, int64_t n,
                               const loom_sampling *sampling, float *sorted) {
    int64_t count = sampling->top_k > 0 && sampling->top_k < n ? sampling->top_k : n, equal = 0;
    if (count == n && sampling->top_p >= 1) return (selection){-INFINITY, 0};
    for (int64_t i = 0; i < n; i++) {
        sorted[2 * i] = logits[i];
        sorted[2 * i + 1] = probabilities[i];
    }
    qsort(sorted, (size_t)n, 2 * sizeof *sorted, larger_first);
    double total = 0, mass = 0;
    for (int64_t i = 0; i < count; i++) total += (double)sorted[2 * i + 1];
    for (int64_t i = 0; i < count && sampling->top_p < 1; i++) {
        mass += (double)sorted[2 * i + 1];
        if (mass >= (double)sampling->top_p * total) count = i + 1;
    }
    const float least = sorted[2 * (count - 1)];
    while (equal < count && sorted[2 * (count - 1 - equal)] == least) equal++;
    return (selection){least, equal};
}

int32_t loom_sample_token(const float *logits, const float *probabilities, int64_t n, const loom_sampling *sampling,
                          uint32_t step, float *scratch) {
    const int32_t best = most_probable(logits, n);
    bool usable = logits[best] > -INFINITY;
    for (int64_t i = 0; i < n; i++) usable &= logits[i] < INFINITY; /* which NaN is not */
    if (!usable) return -1;
    if (sampling->temperature <= 0) return best;
    selection keep = select_tokens(logits, probabilities, n, sampling, scratch);
    float *kept = scratch; /* probabilities, or 0 */
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        const bool in = logits[i] > keep.least || (logits[i] == keep.least && keep.equal-- > 0);
        kept[i] = in ? probabilities[i] : 0;
        total += (double)kept[i];
    }
    const loom_random4 random = loom_random(sampling->seed, LOOM_RANDOM_SAMPLE, step, 0);
    double left = total * (double)loom_random_uniform(random.word[0]);
    int32_t chosen = best;
    for (int64_t i = 0; i < n; i++) {
        if (kept[i] <= 0) continue;
        chosen = (int32_t)i;
        left -= (double)kept[i];
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

/* What a token is chosen by: of a temperature of 0, the logits alone. */
static bool next(loom_gpt *g, const context *c, float temperature, float *logits, float *probabilities,
                 loom_error *error) {
    const int32_t *tokens = c->token + c->run;
    const int64_t n = c->n - c->run;
    return temperature > 0
               ? loom_gpt_next_probabilities(g, tokens, n, c->run, temperature, logits, probabilities, error)
               : loom_gpt_next_logits(g, tokens, n, c->run, logits, error);
}

bool loom_gpt_generate(loom_gpt *g, const int32_t *prompt, int64_t n_prompt, int64_t count,
                       const loom_sampling *sampling, bool (*emit)(void *user, int32_t token), void *user,
                       loom_error *error) {
    LOOM_CHECK(n_prompt >= 1);
    const int64_t V = g->config.vocab_size;
    context c = {.token = malloc((size_t)g->T * sizeof(int32_t))};
    float *logits = malloc(4 * (size_t)V * sizeof *logits); /* and probabilities, and what is sorted */
    bool ok = c.token && logits;
    if (!ok) loom_fail(error, "no memory to sample");
    if (ok) {
        c.n = n_prompt < g->T ? n_prompt : g->T;
        memcpy(c.token, prompt + (n_prompt - c.n), (size_t)c.n * sizeof *c.token);
    }
    for (int64_t i = 0; ok && i < count; i++) {
        ok = next(g, &c, sampling->temperature, logits, logits + V, error);
        if (!ok) break;
        c.run = c.n;
        const int32_t token = loom_sample_token(logits, logits + V, V, sampling, (uint32_t)i, logits + 2 * V);
        if (token < 0)
            ok = loom_fail(error, "the logits are no finite numbers: are the weights damaged, or too large for %s?",
                           loom_dtype_name(g->precision.storage));
        if (!ok || !emit(user, token)) break;
        append(&c, token, g->T);
    }
    free(c.token);
    free(logits);
    return ok;
}
