#include "engine/trainer.h"

#include "base/file.h"
#include "base/printable.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a run does with memory: how many sequences at a time, and what backward computes once more. */

/* Host memory that the plan does not hold: the loader's two batches, a batch of validation, and what libraries and the
 * communicator keep. */
static size_t bytes_beside_plan(const loom_trainer *t) {
    const loom_train_options *o = &t->options;
    const size_t libraries = (size_t)64 << 20;
    return libraries + (size_t)(o->batch / t->comm->size) * (size_t)o->seq_len * 8 * sizeof(int32_t);
}

/* Makes a number the least of all ranks'. */
static bool take_least(loom_trainer *t, int64_t *value, loom_error *error) {
    if (t->comm->size == 1) return true;
    int64_t *all = loom_comm_memory(t->comm, (size_t)t->comm->size * sizeof *all, error);
    const bool ok = all && loom_comm_host_gather(t->comm, all, value, sizeof *all, error);
    for (int r = 0; ok && r < t->comm->size; r++)
        if (all[r] < *value) *value = all[r];
    free(all);
    return ok;
}

/* Bytes that a rank may take: what is free, or --memory where that is less; the least of all ranks. */
static bool bytes_allowed(loom_trainer *t, size_t *allowed, loom_error *error) {
    const loom_train_options *o = &t->options;
    const size_t found = t->device->available(t->device), beside = t->device->host_memory ? bytes_beside_plan(t) : 0;
    const size_t free_bytes = found > beside ? found - beside : 1;
    const size_t most = o->memory > 0 && o->memory < (double)free_bytes ? (size_t)o->memory : free_bytes;
    int64_t least = most < INT64_MAX ? (int64_t)most : INT64_MAX;
    if (!take_least(t, &least, error)) return false;
    *allowed = (size_t)least;
    return true;
}

loom_gpt_config loom_trainer_shape(const loom_trainer *t) {
    const loom_train_options *o = &t->options;
    return (loom_gpt_config){o->n_layer,
                             o->n_head,
                             o->n_embd,
                             o->block_size,
                             o->vocab_size,
                             (loom_gpt_activation)o->activation,
                             (loom_gpt_architecture)o->architecture};
}

loom_sharding loom_trainer_sharding(const loom_trainer *t) {
    loom_sharding sharding = loom_train_options_sharding(&t->options);
    sharding.rank = t->comm->rank;
    return sharding;
}

loom_gpt_setup loom_trainer_setup(const loom_trainer *t, int64_t micro_batch) {
    const loom_train_options *o = &t->options;
    return (loom_gpt_setup){.purpose = LOOM_GPT_TRAIN,
                            .precision = &t->precision,
                            .B = micro_batch,
                            .T = o->seq_len,
                            .recompute = t->recompute,
                            .offload = o->offload == LOOM_OFFLOAD_ACTIVATIONS,
                            .logits_rows = o->logits_rows,
                            .generates = o->sample_every > 0,
                            .sharding = loom_trainer_sharding(t)};
}

/* The largest micro-batch, below `limit`, that the batch can be made of, and whose tokens can be counted; 0: there is
 * none. */
static int64_t next_micro_batch(const loom_train_options *o, int64_t limit) {
    const loom_sharding sharding = loom_train_options_sharding(o);
    const int64_t most = (INT64_C(1) << 31) / o->seq_len;
    for (int64_t B = limit - 1 < most ? limit - 1 : most; B > 0; B--)
        if (loom_micro_batches_divide(o->batch, B, &sharding)) return B;
    return 0;
}

/* The micro-batch that a run chose before and goes on with where it can, as its bits depend on it; 0: none. */
static int64_t earlier_micro_batch(const loom_trainer *t) {
    const loom_sharding sharding = loom_train_options_sharding(&t->options);
    const int64_t B = t->has_before ? t->before.micro_batch : 0;
    return B > 0 && loom_micro_batches_divide(t->options.batch, B, &sharding) ? B : 0;
}

/* The first that is tried where none was said. */
static int64_t first_micro_batch(const loom_trainer *t) {
    const int64_t earlier = earlier_micro_batch(t);
    return earlier ? earlier : next_micro_batch(&t->options, t->options.batch + 1);
}

static bool make_plan(loom_trainer *t, int64_t B, size_t allowed, loom_error *error) {
    const loom_gpt_config shape = loom_trainer_shape(t);
    const loom_gpt_setup setup = loom_trainer_setup(t, B);
    if (!loom_plan_make(&t->plan, &shape, &setup, t->device, t->options.batch, error)) return false;
    t->plan.available = allowed;
    return true;
}

/* With a policy that was said: the micro-batch that was said, or the largest that fits on all ranks, which may differ
 * in threads and in host memory; of a run that goes on the one it had, where that divides. */
static bool plan_by_policy(loom_trainer *t, size_t allowed, loom_error *error) {
    const int64_t said = t->options.micro_batch;
    int64_t B = said ? said : first_micro_batch(t), smaller;
    for (;; B = smaller) {
        if (!make_plan(t, B, allowed, error)) return false;
        smaller = said || loom_plan_fits(&t->plan) ? 0 : next_micro_batch(&t->options, B);
        if (smaller == 0) break;
    }
    return take_least(t, &B, error) && (B == t->plan.B || make_plan(t, B, allowed, error));
}

/* The fastest policy for one micro-batch; *fits tells whether there is one, and then t->prediction how fast it is. */
static bool plan_fastest(loom_trainer *t, int64_t B, size_t allowed, bool *fits, loom_error *error) {
    const loom_gpt_config shape = loom_trainer_shape(t);
    const loom_gpt_setup setup = loom_trainer_setup(t, B);
    t->recompute = (loom_recompute){.kind = LOOM_RECOMPUTE_SQRT};
    if (!make_plan(t, B, allowed, error)) return false;
    *fits = loom_plan_fits(&t->plan);
    if (!*fits) return true; /* nothing keeps less */
    if (!loom_cost_measure(&t->prediction.cost, &shape, &setup, t->device, error) ||
        !loom_plan_choose(&t->plan, &shape, &setup, t->device, t->options.batch, allowed, &t->prediction.cost, error))
        return false;
    t->recompute = t->plan.recompute;
    return loom_cost_step(&t->prediction.cost, &shape, &t->recompute,
                          loom_micro_batches(t->options.batch, B, &setup.sharding), t->plan.elements,
                          &t->prediction.seconds, error);
}

/* The fastest policy that fits, measured here, and unless it was said, the micro-batch: the largest ones that fit with
 * any policy are tried, down to one that can keep everything, as smaller ones would only start more ops. */
static bool plan_automatically(loom_trainer *t, size_t allowed, loom_error *error) {
    enum { MOST_TRIES = 4 };
    const int64_t said = t->options.micro_batch;
    loom_trainer_prediction best = {.seconds = INFINITY};
    loom_plan plan = {.B = 0};
    int tries = 0;
    for (int64_t B = said ? said : first_micro_batch(t); B > 0 && tries < MOST_TRIES;
         B = said ? 0 : next_micro_batch(&t->options, B)) {
        bool fits;
        if (!plan_fastest(t, B, allowed, &fits, error)) return false;
        if (!fits) continue;
        tries++;
        if (t->prediction.seconds < best.seconds) {
            best = t->prediction;
            plan = t->plan;
        }
        if (t->recompute.kind == LOOM_RECOMPUTE_NONE || B == earlier_micro_batch(t)) break;
    }
    if (tries == 0) return true; /* the plan is that of the last try, and too large */
    t->prediction = best;
    t->plan = plan;
    t->recompute = plan.recompute;
    return true;
}

/* The policy and the micro-batch become options, so that a resumed run goes on with them. */
static void keep_plan(loom_trainer *t) {
    loom_recompute_name(&t->plan.recompute, t->recompute_name);
    t->options.recompute = t->recompute_name;
    t->options.micro_batch = t->plan.B;
    t->options.logits_rows = t->plan.logits_rows;
}

/* The decision on its way from rank 0 to the others. */
typedef struct decision {
    int64_t micro_batch;
    loom_recompute recompute;
    loom_trainer_prediction prediction;
} decision;

/* What rank 0 measured, all ranks do. */
static bool follow_rank_0(loom_trainer *t, size_t allowed, loom_error *error) {
    decision made = {t->plan.B, t->plan.recompute, t->prediction};
    if (!loom_comm_host_broadcast(t->comm, &made, sizeof made, 0, error)) return false;
    t->recompute = made.recompute;
    t->prediction = made.prediction;
    return t->comm->rank == 0 || make_plan(t, made.micro_batch, allowed, error);
}

bool loom_trainer_plan_memory(loom_trainer *t, const loom_train_observer *observer, loom_error *error) {
    const bool automatic = t->recompute.kind == LOOM_RECOMPUTE_AUTO, decides = !automatic || t->comm->rank == 0;
    size_t allowed;
    if (!bytes_allowed(t, &allowed, error)) return false;
    if (decides && !(automatic ? plan_automatically(t, allowed, error) : plan_by_policy(t, allowed, error)))
        return false;
    if (automatic && !follow_rank_0(t, allowed, error)) return false;
    if (observer && observer->planned) observer->planned(observer->user, &t->plan);
    if (!loom_plan_check(&t->plan, error)) return false;
    keep_plan(t);
    return true;
}

/* ------------------------------------------------------------------------------------------------------ the run's record */

static bool add_rows(cJSON *json, const loom_plan *plan) {
    cJSON *rows = cJSON_AddObjectToObject(json, "bytes");
    bool ok = rows;
    for (int i = 0; ok && i < plan->arena.n_rows; i++)
        ok = cJSON_AddNumberToObject(rows, plan->arena.row[i].name, (double)plan->arena.row[i].bytes);
    return ok && cJSON_AddNumberToObject(rows, "all", (double)plan->arena.used) &&
           cJSON_AddNumberToObject(rows, "available", (double)plan->available);
}

/* Seconds of the parts of a micro-batch, as loom_cost_parts says. */
static bool add_prediction(cJSON *json, const loom_gpt_config *shape, const loom_trainer_prediction *prediction) {
    loom_cost_parts cost;
    if (!loom_cost_split(&prediction->cost, shape, &cost, NULL)) return false;
    cJSON *parts = cJSON_AddObjectToObject(json, "measured_seconds");
    cJSON *recompute = parts ? cJSON_AddObjectToObject(parts, "recompute_block") : NULL;
    bool ok = recompute && cJSON_AddNumberToObject(json, "predicted_step_seconds", prediction->seconds) &&
              cJSON_AddNumberToObject(parts, "ends", cost.ends) &&
              cJSON_AddNumberToObject(parts, "forward_block", cost.forward) &&
              cJSON_AddNumberToObject(parts, "backward_block", cost.backward) &&
              cJSON_AddNumberToObject(parts, "update_element", prediction->cost.update);
    for (int kind = LOOM_RECOMPUTE_ACT; ok && kind < LOOM_RECOMPUTE_EVERY; kind++) {
        char name[LOOM_RECOMPUTE_NAME];
        loom_recompute_name(&(loom_recompute){.kind = (loom_recompute_kind)kind}, name);
        ok = cJSON_AddNumberToObject(recompute, name, cost.recompute[kind]);
    }
    return ok;
}

/* What was measured when the run began, as the file says that is to be replaced; NULL where it does not. */
static cJSON *read_before(const char *path) {
    loom_mapping file;
    if (!loom_path_exists(path) || !loom_file_map(path, &file, NULL)) return NULL;
    cJSON *json = cJSON_ParseWithLength(file.data, file.size);
    loom_file_unmap(&file);
    return json;
}

/* A resumed run measures nothing: what its first session did stays, for the policy that it was measured for. */
static void keep_prediction(cJSON *json, const char *path) {
    static const char *const kept[] = {"measured_seconds", "predicted_step_seconds"};
    cJSON *before = read_before(path);
    const char *policy = cJSON_GetStringValue(cJSON_GetObjectItem(before, "recompute"));
    if (policy && !strcmp(policy, cJSON_GetStringValue(cJSON_GetObjectItem(json, "recompute"))))
        for (int i = 0; i < 2; i++) {
            cJSON *item = cJSON_DetachItemFromObject(before, kept[i]);
            if (item && !cJSON_AddItemToObject(json, kept[i], item)) cJSON_Delete(item);
        }
    cJSON_Delete(before);
}

bool loom_trainer_write_plan(const loom_trainer *t, const char *path, loom_error *error) {
    cJSON *json = cJSON_CreateObject();
    char *text = NULL;
    bool ok = json && cJSON_AddStringToObject(json, "device", t->device->name) &&
              cJSON_AddStringToObject(json, "description", LOOM_PRINTABLE(t->device->description)) &&
              cJSON_AddStringToObject(json, "recompute", t->options.recompute) &&
              cJSON_AddNumberToObject(json, "micro_batch", (double)t->plan.B) &&
              cJSON_AddNumberToObject(json, "ranks", t->comm->size) &&
              cJSON_AddNumberToObject(json, "zero", (double)t->options.zero) && add_rows(json, &t->plan) &&
              (!(t->prediction.seconds > 0) || add_prediction(json, &t->plan.config, &t->prediction));
    if (ok && !(t->prediction.seconds > 0) && (t->options.resume || t->begins_anew)) keep_prediction(json, path);
    if (ok) ok = (text = cJSON_Print(json)) != NULL;
    cJSON_Delete(json);
    ok = ok ? loom_file_replace(path, text, strlen(text), error) : loom_fail(error, "%s: no memory to write it", path);
    free(text);
    return ok;
}
