#include "data/loader.h"

#include "base/check.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* There are two batches: the caller reads one while the thread fills the other. `lock` protects the fields below it.
 * batch[next] and `error` belong to the thread while `ready` is false, and to the caller while it is true. */
struct loom_loader {
    loom_split split;
    loom_loader_options options;
    int64_t windows;
    loom_batch batch[2];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int next;    /* the batch that the caller gets next */
    bool ready;  /* batch[next] is filled, or filling it failed */
    bool failed; /* filling it ended with `error`, and the thread ended */
    bool closing;
    loom_error error;
};

/* --------------------------------------------------------------------------------------------------- filling a batch
 * Step by step, the sequences of training are numbered through; each epoch is `windows` of them. */

typedef struct placement {
    int64_t window, shift;
} placement;

static placement place_of(const loom_loader *loader, int64_t sequence) {
    const uint64_t seed = loader->options.seed;
    const uint32_t epoch = (uint32_t)(sequence / loader->windows);
    return (placement){
        .window = loom_shuffle(seed, epoch, loader->windows, sequence % loader->windows),
        .shift = loom_window_shift(seed, epoch, loader->split.tokens - 1),
    };
}

static bool is_closing(loom_loader *loader) {
    pthread_mutex_lock(&loader->lock);
    const bool closing = loader->closing;
    pthread_mutex_unlock(&loader->lock);
    return closing;
}

/* Reads this rank's sequences of a step and counts the targets of all ranks. Returns early when the loader is closing,
 * so that reading a large batch from a slow disk does not delay the end. */
static bool fill(loom_loader *loader, loom_batch *batch, int64_t step) {
    const loom_loader_options *options = &loader->options;
    const int64_t T = options->T, own = options->batch / options->ranks, first = options->rank * own;
    batch->step = step;
    batch->targets_in_step = 0;
    for (int64_t b = 0; b < options->batch; b++) {
        if (is_closing(loader)) return false;
        const placement place = place_of(loader, step * options->batch + b);
        batch->targets_in_step += loom_window_pairs(&loader->split, T, place.window);
        if (b < first || b >= first + own) continue;
        int32_t *inputs = batch->inputs + (b - first) * T, *targets = batch->targets + (b - first) * T;
        if (!loom_split_window(&loader->split, T, place.shift, place.window, inputs, targets, &loader->error))
            return false;
    }
    return true;
}

/* --------------------------------------------------------------------------------------------------------- the thread */

static void *prefetch(void *argument) {
    loom_loader *loader = argument;
    int64_t step = loader->options.first_step;
    pthread_mutex_lock(&loader->lock);
    while (!loader->closing && !loader->failed) {
        if (loader->ready) {
            pthread_cond_wait(&loader->changed, &loader->lock);
            continue;
        }
        loom_batch *batch = &loader->batch[loader->next];
        pthread_mutex_unlock(&loader->lock);
        const bool ok = fill(loader, batch, step++);
        pthread_mutex_lock(&loader->lock);
        loader->failed = !ok;
        loader->ready = true;
        pthread_cond_signal(&loader->changed);
    }
    pthread_mutex_unlock(&loader->lock);
    return NULL;
}

/* All signals are blocked in the new thread: the caller's threads handle them. */
static bool start_thread(loom_loader *loader, loom_error *error) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int reason = pthread_create(&loader->thread, NULL, prefetch, loader);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return reason == 0 || loom_fail(error, "the thread that loads data cannot be started: %s", strerror(reason));
}

/* ------------------------------------------------------------------------------------------------- opening and closing */

static bool check_options(const loom_split *split, const loom_loader_options *options, loom_error *error) {
    LOOM_CHECK(options->T >= 1 && options->batch >= 1 && options->micro_batch >= 1 && options->first_step >= 0);
    LOOM_CHECK(options->ranks >= 1 && options->rank >= 0 && options->rank < options->ranks);
    LOOM_CHECK(split->tokens >= 2);
    const long long batch = options->batch, micro_batch = options->micro_batch;
    if (batch % micro_batch != 0 || batch / micro_batch % options->ranks != 0)
        return loom_fail(error,
                         "--batch %lld does not divide into micro-batches of %lld for %d rank%s: choose a "
                         "--micro-batch that divides it",
                         batch, micro_batch, options->ranks, options->ranks > 1 ? "s" : "");
    if (options->first_step >= INT64_MAX / 2 / batch)
        return loom_fail(error, "step %lld is too large to begin at", (long long)options->first_step);
    return true;
}

static void free_batches(loom_loader *loader) {
    for (int i = 0; i < 2; i++) {
        free(loader->batch[i].inputs);
        free(loader->batch[i].targets);
    }
}

static bool allocate_batches(loom_loader *loader, loom_error *error) {
    const loom_loader_options *options = &loader->options;
    const int64_t sequences = options->batch / options->ranks;
    size_t tokens;
    bool ok = !__builtin_mul_overflow(sequences, options->T, &tokens);
    for (int i = 0; ok && i < 2; i++) {
        loader->batch[i].inputs = calloc(tokens, sizeof(int32_t));
        loader->batch[i].targets = calloc(tokens, sizeof(int32_t));
        ok = loader->batch[i].inputs && loader->batch[i].targets;
    }
    if (ok) return true;
    free_batches(loader);
    return loom_fail(error, "there is no memory for a batch of %lld sequences of %lld tokens: choose a smaller --batch",
                     (long long)sequences, (long long)options->T);
}

bool loom_loader_open(loom_loader **loader, const loom_split *split, const loom_loader_options *options,
                      loom_error *error) {
    *loader = NULL;
    if (!check_options(split, options, error)) return false;
    loom_loader *opened = calloc(1, sizeof *opened);
    if (!opened) return loom_fail(error, "there is no memory to load data");
    opened->split = *split;
    opened->options = *options;
    opened->windows = loom_split_windows(split, options->T);
    if (!allocate_batches(opened, error)) {
        free(opened);
        return false;
    }
    pthread_mutex_init(&opened->lock, NULL);
    pthread_cond_init(&opened->changed, NULL);
    if (start_thread(opened, error)) {
        *loader = opened;
        return true;
    }
    pthread_cond_destroy(&opened->changed);
    pthread_mutex_destroy(&opened->lock);
    free_batches(opened);
    free(opened);
    return false;
}

bool loom_loader_next(loom_loader *loader, const loom_batch **batch, loom_error *error) {
    pthread_mutex_lock(&loader->lock);
    while (!loader->ready) pthread_cond_wait(&loader->changed, &loader->lock);
    const bool ok = !loader->failed;
    if (ok) {
        *batch = &loader->batch[loader->next];
        loader->next = 1 - loader->next;
        loader->ready = false;
        pthread_cond_signal(&loader->changed);
    } else if (error) {
        *error = loader->error;
    }
    pthread_mutex_unlock(&loader->lock);
    return ok;
}

void loom_loader_close(loom_loader *loader) {
    if (!loader) return;
    pthread_mutex_lock(&loader->lock);
    loader->closing = true;
    pthread_cond_signal(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
    pthread_join(loader->thread, NULL);
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->lock);
    free_batches(loader);
    free(loader);
}
