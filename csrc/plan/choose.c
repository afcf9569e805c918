#include "base/check.h"
#include "plan/sample.h"

#include <math.h>
#include <stdlib.h>

/* Which policy is the fastest that fits. The named ones are all planned. Then sets of kept values are searched for one
 * that is faster still. Layers are alike, what one computes again does not depend on what the others keep, and the last
 * one computes nothing again, as its values are still there when backward begins. So
 *
 *     seconds = those of keeping everything + the sum over the layers of what their sets compute again,
 *     bytes   = those of keeping nothing + the sum over the layers of what their sets keep
 *               + the most that one of them needs while it is computed again,
 *
 * and of a layer's sets only the Pareto-optimal ones count (in seconds, bytes kept, and bytes while it is computed
 * again). Mixtures of up to three of these, one of them for a single layer, are ranked by the sums. The fastest one
 * that seems to fit is planned; where it does not fit after all, the next one is. Up to four layers these are all
 * mixtures there are. */

/* -------------------------------------------------------------------------------------------------- the sets of one layer */

enum { MOST_VALUES = 16, SAMPLE_LAYERS = 3, MOST_TRIES = 32 };

typedef struct layer_set {
    uint32_t values;
    double seconds; /* of a micro-batch: what a layer computes again */
    size_t kept;    /* bytes that stay until backward, */
    size_t passing; /* and that all of a step needs beside what stays */
} layer_set;

typedef struct search {
    const loom_cost *cost;
    loom_gpt *sample; /* up to two layers to try a set on, and the last one */
    loom_keep *keep;  /* [values of the sample] */
    double *seconds;  /* [sets] as layer_set has them */
    layer_set *set;   /* those that count */
    int n;
    int64_t layers; /* that have a set: all but the last */

    double least;         /* seconds of a step that keeps everything */
    double micro_batches; /* in a step */
    size_t rest;          /* bytes of all but the activations, */
    size_t least_train;   /* of activations in training that keeps nothing, */
    size_t others;        /* and of what else they must have room for */
    layer_set keeps_nothing;
} search;

static loom_recompute with_sets(int n, const loom_kept_set *set) {
    loom_recompute recompute = {.kind = LOOM_RECOMPUTE_SETS};
    for (int i = 0; i < n; i++) {
        if (set[i].blocks == 0) continue;
        const bool same = recompute.n_sets > 0 && recompute.set[recompute.n_sets - 1].values == set[i].values;
        if (same)
            recompute.set[recompute.n_sets - 1].blocks += set[i].blocks;
        else
            recompute.set[recompute.n_sets++] = set[i];
    }
    return recompute;
}

/* The schedule of the sample with a set in all its layers but the last. */
static bool schedule_with(search *s, uint32_t values, loom_tape_schedule *schedule, loom_error *error) {
    const loom_tape *tape = &s->sample->tape;
    const loom_recompute recompute = with_sets(2, (loom_kept_set[]){{values, tape->n_layers - 1}, {0, 1}});
    loom_tape_keep(tape, &recompute, s->keep);
    return loom_tape_schedule_train(schedule, tape, s->keep, 1, false, error);
}

static bool time_sets(search *s, uint32_t all, loom_error *error) {
    const loom_tape *tape = &s->sample->tape;
    for (uint32_t values = 0; values <= all; values++) {
        loom_tape_schedule schedule;
        if (!schedule_with(s, values, &schedule, error)) return false;
        s->seconds[values] = loom_cost_of_schedule(s->cost, tape, &schedule);
        loom_tape_schedule_destroy(&schedule);
    }
    const double least = s->seconds[all];
    for (uint32_t values = 0; values <= all; values++)
        s->seconds[values] = (s->seconds[values] - least) / (tape->n_layers - 1);
    return true;
}

/* Whether a value is kept that is computed again all the same, with others. */
static bool is_wasteful(const search *s, uint32_t values) {
    for (uint32_t rest = values; rest; rest &= rest - 1)
        if (s->seconds[values & ~(rest & -rest)] <= s->seconds[values]) return true;
    return false;
}

static bool measure_set(search *s, uint32_t values, layer_set *set, loom_error *error) {
    const loom_tape *tape = &s->sample->tape;
    loom_buffer_sizes sizes = loom_gpt_buffer_sizes(s->sample);
    loom_tape_schedule schedule;
    loom_buffers buffers = {0};
    sizes.keep = s->keep;
    if (!schedule_with(s, values, &schedule, error)) return false;
    const bool ok = loom_buffers_find(&buffers, tape, &schedule, &sizes, error);
    if (ok) *set = (layer_set){values, s->seconds[values], buffers.kept, buffers.bytes - buffers.kept};
    loom_buffers_destroy(&buffers);
    loom_tape_schedule_destroy(&schedule);
    return ok;
}

static bool is_as_good(const layer_set *a, const layer_set *b) {
    return a->seconds <= b->seconds && a->kept <= b->kept && a->passing <= b->passing;
}

/* Adds a set to those that count, unless one of them is as good; others go that are no better than it. */
static void add_set(search *s, layer_set set) {
    int n = 0;
    for (int i = 0; i < s->n; i++)
        if (is_as_good(&s->set[i], &set)) return;
    for (int i = 0; i < s->n; i++)
        if (!is_as_good(&set, &s->set[i])) s->set[n++] = s->set[i];
    s->set[n++] = set;
    s->n = n;
}

static bool find_sets(search *s, loom_error *error) {
    loom_value saved[LOOM_SET_MOST_VALUES];
    const int n = loom_tape_saved_values(&s->sample->tape, 0, saved);
    LOOM_CHECK(n <= MOST_VALUES);
    const uint32_t all = (UINT32_C(1) << n) - 1;
    s->keep = malloc((size_t)s->sample->tape.n_values * sizeof *s->keep);
    s->seconds = malloc(((size_t)all + 1) * sizeof *s->seconds);
    s->set = malloc(((size_t)all + 1) * sizeof *s->set);
    if (!s->keep || !s->seconds || !s->set) return loom_fail(error, "no memory to search what to keep");
    if (!time_sets(s, all, error) || !measure_set(s, 0, &s->keeps_nothing, error)) return false;
    const int sample_layers = s->sample->tape.n_layers - 1;
    for (uint32_t values = 0; values <= all; values++) {
        layer_set set;
        if (is_wasteful(s, values)) continue;
        if (!measure_set(s, values, &set, error)) return false;
        set.kept = (set.kept - s->keeps_nothing.kept) / (size_t)sample_layers;
        add_set(s, set);
    }
    return true;
}

/* -------------------------------------------------------------------------------------------------------------- mixtures */

/* Of the layers that have a set, `first` take set a, one takes c, and the others b. */
typedef struct mixture {
    int a, b, c;
    int64_t first;
    double seconds; /* of a step */
    size_t bytes;
} mixture;

static mixture mix(const search *s, int a, int b, int c, int64_t first) {
    const layer_set *x = &s->set[a], *y = &s->set[b], *z = &s->set[c];
    const int64_t others = s->layers - 1 - first;
    mixture m = {a, b, c, first, 0, 0};
    m.seconds = s->least + s->micro_batches * ((double)first * x->seconds + (double)others * y->seconds + z->seconds);
    size_t passing = z->passing;
    if (first > 0 && x->passing > passing) passing = x->passing;
    if (others > 0 && y->passing > passing) passing = y->passing;
    const size_t train = s->least_train - s->keeps_nothing.passing + passing + (size_t)first * x->kept +
                         (size_t)others * y->kept + z->kept;
    m.bytes = s->rest + (train > s->others ? train : s->others);
    return m;
}

static bool comes_before(const mixture *x, const mixture *y) {
    return x->seconds != y->seconds ? x->seconds < y->seconds : x->bytes < y->bytes;
}

/* The next mixture behind one that was tried, in the order of time, that takes no more bytes than there are. */
static bool find_next(const search *s, size_t available, mixture *m) {
    const mixture tried = *m;
    mixture best = {.seconds = INFINITY};
    for (int a = 0; a < s->n; a++)
        for (int b = a; b < s->n; b++)
            for (int64_t first = 0; first < s->layers; first++)
                for (int c = 0; c < s->n; c++) {
                    const mixture next = mix(s, a, b, c, first);
                    if ((available == 0 || next.bytes <= available) && comes_before(&tried, &next) &&
                        comes_before(&next, &best))
                        best = next;
                }
    *m = best;
    return best.seconds < INFINITY;
}

static loom_recompute recompute_of(const search *s, const mixture *m) {
    const int32_t first = (int32_t)m->first, others = (int32_t)(s->layers - 1 - m->first);
    return with_sets(
        4, (loom_kept_set[]){
               {s->set[m->a].values, first}, {s->set[m->c].values, 1}, {s->set[m->b].values, others}, {0, 1}});
}

/* -------------------------------------------------------------------------------------------------------------- choosing */

/* What is planned for. */
typedef struct training {
    const loom_gpt_config *config;
    const loom_gpt_setup *setup;
    loom_device *device;
    int64_t sequences;
    size_t available;
    const loom_cost *cost;
} training;

static bool plan_with(const training *t, const loom_recompute *recompute, loom_plan *plan, double *seconds,
                      loom_error *error) {
    loom_gpt_setup setup = *t->setup;
    setup.recompute = *recompute;
    if (!loom_plan_make(plan, t->config, &setup, t->device, t->sequences, error)) return false;
    plan->available = t->available;
    return loom_cost_step(t->cost, t->config, recompute, loom_micro_batches(t->sequences, setup.B, &setup.sharding),
                          plan->elements, seconds, error);
}

static bool make_sample(search *s, const training *t, loom_error *error) {
    loom_gpt_config config = *t->config;
    loom_gpt_setup setup = *t->setup;
    if (config.n_layer > SAMPLE_LAYERS) config.n_layer = SAMPLE_LAYERS;
    setup.recompute = (loom_recompute){.kind = LOOM_RECOMPUTE_BLOCK};
    setup.generates = setup.offload = false;
    setup.sharding = (loom_sharding){0};
    return loom_gpt_create(&s->sample, &config, &setup, t->device, error);
}

/* The bytes of a plan that keeps nothing, by what they are for. */
static bool find_least(search *s, const training *t, loom_error *error) {
    const loom_kept_set nothing = {0, (int32_t)t->config->n_layer};
    loom_gpt_setup setup = *t->setup;
    setup.recompute = with_sets(1, &nothing);
    loom_plan plan;
    loom_gpt *gpt;
    double seconds;
    if (!plan_with(t, &setup.recompute, &plan, &seconds, error) ||
        !loom_gpt_create(&gpt, t->config, &setup, t->device, error))
        return false;
    s->least_train = gpt->buffers[LOOM_MODE_TRAIN].bytes;
    for (int mode = 0; mode < LOOM_MODES; mode++)
        if (mode != LOOM_MODE_TRAIN && gpt->buffers[mode].bytes > s->others) s->others = gpt->buffers[mode].bytes;
    s->rest = plan.arena.used - (s->least_train > s->others ? s->least_train : s->others);
    loom_gpt_destroy(gpt);
    return true;
}

/* Puts a plan with sets in the place of the best one, if one is faster. */
static bool search_sets(search *s, const training *t, loom_plan *best, double *fastest, loom_error *error) {
    mixture m = {.seconds = -INFINITY};
    if (!make_sample(s, t, error) || !find_sets(s, error) || !find_least(s, t, error)) return false;
    for (int tries = 0; tries < MOST_TRIES && find_next(s, t->available, &m); tries++) {
        const loom_recompute recompute = recompute_of(s, &m);
        loom_plan plan;
        double seconds;
        if (m.seconds >= *fastest * (1 - 1e-9)) return true; /* but for what rounding makes of equal sums */
        if (!plan_with(t, &recompute, &plan, &seconds, error)) return false;
        if (!loom_plan_fits(&plan)) continue;
        *best = plan;
        *fastest = seconds;
        return true;
    }
    return true;
}

static void search_free(search *s) {
    loom_gpt_destroy(s->sample);
    free(s->keep);
    free(s->seconds);
    free(s->set);
}

bool loom_plan_choose(loom_plan *plan, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                      int64_t sequences, size_t available, const loom_cost *cost, loom_error *error) {
    const training t = {config, setup, device, sequences, available, cost};
    loom_recompute policies[LOOM_MOST_POLICIES];
    const int n = loom_recompute_policies(config->n_layer, policies);
    loom_plan smallest = {0};
    double fastest = INFINITY, least = 0;
    for (int i = 0; i < n; i++) {
        loom_plan candidate;
        double seconds;
        if (!plan_with(&t, &policies[i], &candidate, &seconds, error)) return false;
        if (i == 0) least = seconds;
        if (i == 0 || candidate.arena.used < smallest.arena.used) smallest = candidate;
        if (!loom_plan_fits(&candidate) || seconds >= fastest) continue;
        fastest = seconds;
        *plan = candidate;
    }
    search s = {.cost = cost,
                .layers = config->n_layer - 1,
                .least = least,
                .micro_batches = (double)loom_micro_batches(sequences, setup->B, &setup->sharding)};
    const bool ok = s.layers == 0 || search_sets(&s, &t, plan, &fastest, error);
    search_free(&s);
    if (!ok || fastest < INFINITY) return ok;
    *plan = smallest;
    return loom_plan_check(plan, error);
}
