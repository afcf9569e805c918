#include "cuda/cudnn_engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef cudnnBackendDescriptor_t descriptor;

enum { CANDIDATES = 16, KNOBS = 64, NOTES = CUDNN_NUMERICAL_NOTE_TYPE_COUNT };

static void destroy(const loom_cudnn_api *api, descriptor *d, int count) {
    for (int i = 0; i < count; i++)
        if (d[i]) api->BackendDestroyDescriptor(d[i]);
}

/* Creates a descriptor, unless something failed before. */
static void create(const loom_cudnn_api *api, cudnnStatus_t *status, cudnnBackendDescriptorType_t type, descriptor *d) {
    if (!*status) *status = api->BackendCreateDescriptor(type, d);
}

static void set(const loom_cudnn_api *api, cudnnStatus_t *status, descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    if (!*status) *status = api->BackendSetAttribute(d, name, type, count, values);
}

/* *count of the `most` that there is room for. */
static void get(const loom_cudnn_api *api, cudnnStatus_t *status, descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t most, int64_t *count, void *values) {
    *count = 0;
    if (!*status) *status = api->BackendGetAttribute(d, name, type, most, count, values);
}

static void finalize(const loom_cudnn_api *api, cudnnStatus_t *status, descriptor d) {
    if (!*status) *status = api->BackendFinalize(d);
}

/* Why there is no plan, in cuDNN's words. */
static void explain(loom_cudnn_plan *p, const loom_cudnn_api *api, cudnnStatus_t status) {
    char message[200] = "";
    api->GetLastErrorString(message, sizeof message);
    snprintf(p->why, sizeof p->why, "%s", message[0] ? message : api->GetErrorString(status));
}

/* ------------------------------------------------------------------------------------------------------ configurations */

/* An engine that adds in an order that changes from run to run says so. */
static bool is_deterministic(const loom_cudnn_api *api, descriptor engine) {
    cudnnBackendNumericalNote_t notes[NOTES];
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    int64_t count;
    get(api, &status, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES, &count, notes);
    bool known = !status;
    for (int64_t i = 0; i < count && known; i++) known = notes[i] != CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
    return known;
}

/* Writes the engine's number and the knobs; false where cuDNN does not tell them, or they do not fit. */
static bool name_engine(const loom_cudnn_api *api, descriptor config, descriptor engine, char name[LOOM_TUNING_VALUE]) {
    descriptor knob[KNOBS] = {NULL};
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    int64_t index = 0, knobs, one;
    get(api, &status, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &one, &index);
    for (int i = 0; i < KNOBS; i++) create(api, &status, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, &knob[i]);
    get(api, &status, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, KNOBS, &knobs, knob);
    int length = snprintf(name, LOOM_TUNING_VALUE, "engine%lld", (long long)index);
    for (int64_t i = 0; i < knobs && i < KNOBS && length < LOOM_TUNING_VALUE; i++) {
        cudnnBackendKnobType_t type = 0;
        int64_t value = 0;
        get(api, &status, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &one, &type);
        get(api, &status, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &one, &value);
        length += snprintf(name + length, (size_t)(LOOM_TUNING_VALUE - length), ",%d=%lld", (int)type,
                           (long long)value);
    }
    destroy(api, knob, KNOBS);
    return !status && knobs <= KNOBS && length < LOOM_TUNING_VALUE;
}

/* The engine of a configuration that cuDNN proposes, to be destroyed. */
static bool engine_of(const loom_cudnn_api *api, descriptor config, descriptor *engine) {
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    int64_t count;
    create(api, &status, CUDNN_BACKEND_ENGINE_DESCRIPTOR, engine);
    get(api, &status, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, engine);
    return !status;
}

/* The descriptor of an engine by its number. */
static void make_engine(const loom_cudnn_api *api, cudnnStatus_t *status, descriptor graph, descriptor properties,
                        int64_t index, descriptor *engine) {
    create(api, status, CUDNN_BACKEND_ENGINE_DESCRIPTOR, engine);
    set(api, status, *engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
    set(api, status, *engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &index);
    set(api, status, *engine, CUDNN_ATTR_ENGINE_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &properties);
    finalize(api, status, *engine);
}

/* Makes the knobs of a name ",24=3,27=1"; returns how many. */
static int make_knobs(const loom_cudnn_api *api, cudnnStatus_t *status, const char *name, descriptor knob[KNOBS]) {
    int count = 0;
    for (char *end; *name == ',' && count < KNOBS && !*status; name = end) {
        const cudnnBackendKnobType_t type = (cudnnBackendKnobType_t)strtol(name + 1, &end, 10);
        const int64_t value = strtoll(end + (*end == '='), &end, 10);
        descriptor *k = &knob[count++];
        create(api, status, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, k);
        set(api, status, *k, CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
        set(api, status, *k, CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &value);
        finalize(api, status, *k);
    }
    return count;
}

/* --------------------------------------------------------------------------------------------------------------- plans */

/* Compiles a configuration. */
static void compile(loom_cudnn_plan *p, const loom_cudnn_api *api, descriptor config, descriptor properties) {
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    int64_t bytes = 0, count;
    create(api, &status, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->plan);
    set(api, &status, p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    set(api, &status, p->plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &properties);
    finalize(api, &status, p->plan);
    get(api, &status, p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &bytes);
    p->workspace = (size_t)bytes;
    if (!status) return;
    explain(p, api, status);
    destroy(api, &p->plan, 1);
    p->plan = NULL;
}

/* Compiles a configuration that cuDNN proposes, if its bits can be counted on and it can be named. */
static void try_proposed(loom_cudnn_plan *p, const loom_cudnn_api *api, descriptor config, descriptor properties) {
    descriptor engine = NULL;
    if (engine_of(api, config, &engine) && is_deterministic(api, engine) && name_engine(api, config, engine, p->engine))
        compile(p, api, config, properties);
    destroy(api, &engine, 1);
}

/* Asks for configurations of the graph, the most promising first, and takes the first that will do. */
static void plan_proposed(loom_cudnn_plan *p, const loom_cudnn_api *api, descriptor graph, descriptor properties) {
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    descriptor heuristics = NULL, config[CANDIDATES] = {NULL};
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    int64_t count;
    create(api, &status, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristics);
    set(api, &status, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
    set(api, &status, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    set(api, &status, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &properties);
    finalize(api, &status, heuristics);
    for (int i = 0; i < CANDIDATES; i++) create(api, &status, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config[i]);
    get(api, &status, heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, CANDIDATES, &count,
        config);
    if (status)
        explain(p, api, status);
    else
        snprintf(p->why, sizeof p->why, "it has no deterministic engine for this");
    for (int64_t i = 0; i < count && !status && !p->plan; i++) try_proposed(p, api, config[i], properties);
    destroy(api, config, CANDIDATES);
    destroy(api, &heuristics, 1);
}

/* Takes the engine and the knobs that the name says. */
static void plan_named(loom_cudnn_plan *p, const loom_cudnn_api *api, descriptor graph, descriptor properties) {
    descriptor engine = NULL, config = NULL, knob[KNOBS] = {NULL};
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    char *knobs;
    make_engine(api, &status, graph, properties, strtoll(p->engine + strlen("engine"), &knobs, 10), &engine);
    const int count = make_knobs(api, &status, knobs, knob);
    create(api, &status, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config);
    set(api, &status, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
    if (count) set(api, &status, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, knob);
    finalize(api, &status, config);
    if (status)
        explain(p, api, status);
    else if (!is_deterministic(api, engine))
        snprintf(p->why, sizeof p->why, "it is not deterministic");
    else
        compile(p, api, config, properties);
    destroy(api, &config, 1);
    destroy(api, knob, count);
    destroy(api, &engine, 1);
}

void loom_cudnn_plan_make(loom_cudnn_plan *p, const loom_cudnn_api *api, const loom_cudnn_graph *graph,
                          descriptor properties, const char *given) {
    *p = (loom_cudnn_plan){0};
    if (given) {
        snprintf(p->engine, sizeof p->engine, "%s", given);
        plan_named(p, api, graph->graph, properties);
    } else {
        plan_proposed(p, api, graph->graph, properties);
    }
    if (p->plan) {
        p->why[0] = 0;
    } else if (given) {
        char why[sizeof p->why];
        strcpy(why, p->why);
        snprintf(p->why, sizeof p->why, "%.60s of the run's tuning cache is refused: %.150s", given, why);
    }
}
