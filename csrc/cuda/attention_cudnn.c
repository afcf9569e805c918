#include "cuda/attention_cudnn.h"

#include "base/check.h"
#include "cuda/cudnn_engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Plans of cuDNN's attention, one per shape, and running them. */

/* What plans differ in: the shapes of q and k, and how all tensors are strided. All members are of one size, so that
 * shapes are compared as bytes. */
typedef struct shape {
    int64_t backward, dtype;
    int64_t B, Tq, Tk, H, Hkv, D;
    int64_t stride[9][3]; /* in the order of views_of() */
} shape;

typedef struct plan {
    shape shape;
    loom_cudnn_plan made;
    char why[300]; /* there is no plan */
    struct plan *next;
} plan;

struct loom_cuda_cudnn {
    const loom_cudnn_api *api;
    cudnnHandle_t handle;                /* NULL: plans are only made */
    cudnnBackendDescriptor_t properties; /* of the GPU */
    char library[32];
    loom_tuning *tuning; /* the device's */
    plan *first;
};

/* ------------------------------------------------------------------------------------------------------- opening, closing */

static bool fails(const loom_cudnn_api *api, cudnnStatus_t status, const char *call, loom_error *error) {
    if (status == CUDNN_STATUS_SUCCESS) return false;
    char message[256] = "";
    api->GetLastErrorString(message, sizeof message);
    loom_fail(error, "--attention cudnn: %s: %s%s%s", call, api->GetErrorString(status), message[0] ? ": " : "",
              message);
    return true;
}

/* Either of `handle` and `json` says which GPU it is. */
static bool create(loom_cuda_cudnn **out, cudnnHandle_t handle, const char *json, loom_tuning *tuning,
                   const loom_cudnn_api *api, loom_error *error) {
    loom_cuda_cudnn *c = calloc(1, sizeof *c);
    if (!c) return loom_fail(error, "no memory for the plans of cuDNN");
    const size_t version = api->GetVersion();
    c->api = api;
    c->tuning = tuning;
    snprintf(c->library, sizeof c->library, "cuDNN %zu.%zu.%zu", version / 10000, version / 100 % 100, version % 100);
    cudnnStatus_t status = api->BackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &c->properties);
    if (!status && handle)
        status = api->BackendSetAttribute(c->properties, CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    if (!status && json)
        status = api->BackendSetAttribute(c->properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                          (int64_t)strlen(json) + 1, json);
    if (!status) status = api->BackendFinalize(c->properties);
    if (fails(api, status, "the properties of the GPU", error)) {
        loom_cuda_cudnn_destroy(c);
        return false;
    }
    c->handle = handle;
    *out = c;
    return true;
}

bool loom_cuda_cudnn_create(loom_cuda_cudnn **out, loom_cuda *cuda, loom_error *error) {
    if (strcmp(cuda->device.name, "cuda") != 0)
        return loom_fail(error, "--attention cudnn: cuDNN's kernels run on no emulated GPU; leave --attention away");
    const loom_cudnn_api *api = loom_cudnn_load(error);
    cudnnHandle_t handle = NULL;
    if (!api || fails(api, api->Create(&handle), "cudnnCreate", error)) return false;
    if (create(out, handle, NULL, &cuda->tuning, api, error)) return true;
    api->Destroy(handle);
    return false;
}

bool loom_cuda_cudnn_create_for(loom_cuda_cudnn **out, const char *properties, loom_tuning *tuning, loom_error *error) {
    const loom_cudnn_api *api = loom_cudnn_load(error);
    return api && create(out, NULL, properties, tuning, api, error);
}

void loom_cuda_cudnn_destroy(loom_cuda_cudnn *c) {
    if (!c) return;
    while (c->first) {
        plan *p = c->first;
        c->first = p->next;
        if (p->made.plan) c->api->BackendDestroyDescriptor(p->made.plan);
        free(p);
    }
    if (c->properties) c->api->BackendDestroyDescriptor(c->properties);
    if (c->handle) c->api->Destroy(c->handle);
    free(c);
}

const char *loom_cuda_cudnn_library(const loom_cuda_cudnn *c) {
    return c->library;
}

/* --------------------------------------------------------------------------------------------------------------- shapes */

static loom_cudnn_attention attention_of(loom_op op, const void *arguments) {
    const struct loom_attention_forward *f = arguments;
    const struct loom_attention_backward *b = arguments;
    if (op == LOOM_OP_attention_forward)
        return (loom_cudnn_attention){.q = &f->q, .k = &f->k, .v = &f->v, .out = &f->out, .lse = &f->lse};
    return (loom_cudnn_attention){.q = &b->q,
                                  .k = &b->k,
                                  .v = &b->v,
                                  .out = &b->out,
                                  .lse = &b->lse,
                                  .dout = &b->dout,
                                  .dq = &b->dq,
                                  .dk = &b->dk,
                                  .dv = &b->dv};
}

static int64_t first_query_of(loom_op op, const void *arguments) {
    return op == LOOM_OP_attention_forward ? ((const struct loom_attention_forward *)arguments)->first_query
                                           : ((const struct loom_attention_backward *)arguments)->first_query;
}

static float scale_of(loom_op op, const void *arguments) {
    return op == LOOM_OP_attention_forward ? ((const struct loom_attention_forward *)arguments)->scale
                                           : ((const struct loom_attention_backward *)arguments)->scale;
}

/* All views of a call; those of the backward pass are NULL in the forward one. */
static void views_of(const loom_cudnn_attention *a, const loom_view *view[9]) {
    const loom_view *const all[9] = {a->q, a->k, a->v, a->out, a->lse, a->dout, a->dq, a->dk, a->dv};
    memcpy(view, all, sizeof all);
}

static shape shape_of(const loom_cudnn_attention *a) {
    const loom_view *view[9];
    shape s = {.backward = a->dout != NULL,
               .dtype = a->q->dtype,
               .B = a->q->shape[0],
               .Tq = a->q->shape[1],
               .Tk = a->k->shape[1],
               .H = a->q->shape[2],
               .Hkv = a->k->shape[2],
               .D = a->q->shape[3]};
    views_of(a, view);
    for (int i = 0; i < 9; i++)
        for (int d = 0; d < 3; d++) s.stride[i][d] = view[i] ? view[i]->stride[d] : 0;
    return s;
}

/* What is known not to work, in words that are clearer than cuDNN's. */
static const char *refusal(loom_op op, const void *arguments, const loom_cudnn_attention *a) {
    const loom_view *view[9];
    if (a->q->dtype != LOOM_BF16 && a->q->dtype != LOOM_F16) return "attention by cuDNN in fp32; take bf16 or fp16";
    if (first_query_of(op, arguments) != 0) return "attention by cuDNN to keys before the first query";
    if (a->q->shape[3] % 8 != 0 || a->q->shape[3] > 128)
        return "attention by cuDNN with a head size that is not a multiple of 8 up to 128";
    views_of(a, view);
    for (int i = 0; i < 9; i++)
        for (int d = 0; d < 3; d++)
            if (view[i] && view[i] != a->lse && view[i]->shape[d] > 1 && view[i]->stride[d] % 8 != 0)
                return "attention by cuDNN of heads that are not aligned to 16 bytes";
    return NULL;
}

/* -------------------------------------------------------------------------------------------------------------- planning */

/* What names a shape in the tuning cache: "backward,bf16,4x1024x12:1024x12x64", then the strides of each view, as in
 * ",2359296:2304:64". */
static void name_shape(const shape *s, char key[LOOM_TUNING_KEY]) {
    int length = snprintf(key, LOOM_TUNING_KEY, "%s,%s,%lldx%lldx%lld:%lldx%lldx%lld",
                          s->backward ? "backward" : "forward", loom_dtype_name((loom_dtype)s->dtype), (long long)s->B,
                          (long long)s->Tq, (long long)s->H, (long long)s->Tk, (long long)s->Hkv, (long long)s->D);
    for (int i = 0; i < (s->backward ? 9 : 5); i++)
        length += snprintf(key + length, (size_t)(LOOM_TUNING_KEY - length), ",%lld:%lld:%lld",
                           (long long)s->stride[i][0], (long long)s->stride[i][1], (long long)s->stride[i][2]);
}

static plan *find(const loom_cuda_cudnn *c, const shape *s) {
    for (plan *p = c->first; p; p = p->next)
        if (!memcmp(&p->shape, s, sizeof *s)) return p;
    return NULL;
}

/* The plan of a shape, made now if it is not there; that there is none is kept too. NULL: out of memory. */
static plan *make(loom_cuda_cudnn *c, const shape *s, const loom_cudnn_attention *a) {
    plan *p = find(c, s);
    if (p) return p;
    if (!(p = calloc(1, sizeof *p))) return NULL;
    p->shape = *s;
    loom_cudnn_graph graph;
    char key[LOOM_TUNING_KEY];
    name_shape(s, key);
    const bool built = loom_cudnn_graph_build(&graph, c->api, c->handle, a);
    if (built)
        loom_cudnn_plan_make(&p->made, c->api, &graph, c->properties,
                             loom_tuning_take(c->tuning, LOOM_TUNING_ATTENTION, key));
    if (!p->made.plan)
        snprintf(p->why, sizeof p->why, "attention by cuDNN: %.250s", built ? p->made.why : graph.message);
    loom_cudnn_graph_destroy(&graph);
    p->next = c->first;
    return c->first = p;
}

bool loom_cuda_cudnn_supports(loom_cuda_cudnn *c, loom_op op, const void *arguments, const char **why) {
    const loom_cudnn_attention a = attention_of(op, arguments);
    if ((*why = refusal(op, arguments, &a))) return false;
    const shape s = shape_of(&a);
    const plan *p = make(c, &s, &a);
    if (!p || !p->made.plan) *why = p ? p->why : "attention by cuDNN: no memory for a plan";
    return !*why;
}

bool loom_cuda_cudnn_prepare(loom_cuda_cudnn *c, loom_op op, const void *arguments, loom_error *error) {
    const char *why;
    char key[LOOM_TUNING_KEY];
    if (!loom_cuda_cudnn_supports(c, op, arguments, &why)) return loom_fail(error, "%s", why);
    const loom_cudnn_attention a = attention_of(op, arguments);
    const shape s = shape_of(&a);
    const plan *p = find(c, &s);
    name_shape(&s, key);
    const char *tuned = loom_tuning_take(c->tuning, LOOM_TUNING_ATTENTION, key);
    if (!tuned) return loom_tuning_add(c->tuning, LOOM_TUNING_ATTENTION, key, p->made.engine, error);
    return !strcmp(tuned, p->made.engine) ||
           loom_fail(error, "the tuning cache's entry for attention %.200s is not the one that is in use", key);
}

/* First what the plan itself needs, then delta. */
static size_t delta_offset(const plan *p) {
    return (p->made.workspace + 255) / 256 * 256;
}

size_t loom_cuda_cudnn_workspace(loom_cuda_cudnn *c, loom_op op, const void *arguments) {
    const loom_cudnn_attention a = attention_of(op, arguments);
    const shape s = shape_of(&a);
    const plan *p = make(c, &s, &a);
    LOOM_CHECK(p && p->made.plan);
    return delta_offset(p) + (s.backward ? (size_t)(s.B * s.H * s.Tq) * sizeof(float) : 0);
}

/* --------------------------------------------------------------------------------------------------------------- running */

static cudnnStatus_t execute(const loom_cuda_cudnn *c, const plan *p, const loom_cudnn_attention *a, float scale,
                             void *workspace) {
    const loom_cudnn_api *api = c->api;
    float minus_infinity = -INFINITY, one = 1;
    char *const delta = (char *)workspace + delta_offset(p);
    int64_t number[LOOM_CUDNN_TENSORS] = {LOOM_CUDNN_Q,
                                          LOOM_CUDNN_K,
                                          LOOM_CUDNN_V,
                                          LOOM_CUDNN_OUT,
                                          LOOM_CUDNN_LSE,
                                          LOOM_CUDNN_SCALE,
                                          LOOM_CUDNN_MINUS_INFINITY};
    void *data[LOOM_CUDNN_TENSORS] = {a->q->data,   a->k->data, a->v->data,     a->out->data,
                                      a->lse->data, &scale,     &minus_infinity};
    int64_t count = 7;
    if (a->dout) {
        const int64_t more[] = {LOOM_CUDNN_ONE, LOOM_CUDNN_DELTA, LOOM_CUDNN_DOUT,
                                LOOM_CUDNN_DQ,  LOOM_CUDNN_DK,    LOOM_CUDNN_DV};
        void *const places[] = {&one, delta, a->dout->data, a->dq->data, a->dk->data, a->dv->data};
        memcpy(number + count, more, sizeof more);
        memcpy(data + count, places, sizeof places);
        count += 6;
    }
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t status = api->BackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (!status)
        status = api->BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, number);
    if (!status)
        status = api->BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count,
                                          data);
    if (!status)
        status = api->BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (!status) status = api->BackendFinalize(pack);
    if (!status) status = api->BackendExecute(c->handle, p->made.plan, pack);
    if (pack) api->BackendDestroyDescriptor(pack);
    return status;
}

static bool is_aligned(const loom_cudnn_attention *a) {
    const loom_view *view[9];
    views_of(a, view);
    for (int i = 0; i < 9; i++)
        if (view[i] && (uintptr_t)view[i]->data % 16 != 0) return false;
    return true;
}

/* False if there is no plan for this. */
static bool run(loom_context *ctx, loom_op op, const void *arguments) {
    const loom_cuda_cudnn *c = loom_cuda_of(ctx->device)->cudnn;
    const loom_cudnn_attention a = attention_of(op, arguments);
    const shape s = shape_of(&a);
    const plan *p = find(c, &s);
    if (first_query_of(op, arguments) != 0 || !p || !p->made.plan) return false;
    LOOM_CHECK(ctx->workspace_bytes >= loom_cuda_cudnn_workspace(loom_cuda_of(ctx->device)->cudnn, op, arguments));
    if (!is_aligned(&a)) {
        loom_cuda_failed_because(ctx, loom_op_name(op), "cuDNN takes only data that is aligned to 16 bytes");
        return true;
    }
    cudnnStatus_t status = c->api->SetStream(c->handle, loom_cuda_stream(ctx));
    if (!status) status = execute(c, p, &a, scale_of(op, arguments), ctx->workspace);
    if (status) loom_cuda_failed_because(ctx, loom_op_name(op), c->api->GetErrorString(status));
    return true;
}

static void forward(loom_context *ctx, const struct loom_attention_forward *a) {
    if (!run(ctx, LOOM_OP_attention_forward, a)) loom_cuda_attention_forward(ctx, a);
}

static void backward(loom_context *ctx, const struct loom_attention_backward *a) {
    if (!run(ctx, LOOM_OP_attention_backward, a)) loom_cuda_attention_backward(ctx, a);
}

/* ------------------------------------------------------------------------------------------------------------- the table */

/* Generation, whose queries stand behind keys that were there before, and whose shapes change from token to token, is
 * left to our own kernels. */
static bool is_for_cudnn(loom_op op, const void *arguments) {
    return (op == LOOM_OP_attention_forward || op == LOOM_OP_attention_backward) && first_query_of(op, arguments) == 0;
}

static bool supports(const loom_device *device, loom_op op, const void *arguments, const char **why) {
    return loom_cuda_ops()->supports(device, op, arguments, why) &&
           (!is_for_cudnn(op, arguments) || loom_cuda_cudnn_supports(loom_cuda_of(device)->cudnn, op, arguments, why));
}

static size_t workspace(const loom_device *device, loom_op op, const void *arguments) {
    return is_for_cudnn(op, arguments) ? loom_cuda_cudnn_workspace(loom_cuda_of(device)->cudnn, op, arguments)
                                       : loom_cuda_ops()->workspace(device, op, arguments);
}

static bool prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    return is_for_cudnn(op, arguments) ? loom_cuda_cudnn_prepare(loom_cuda_of(device)->cudnn, op, arguments, error)
                                       : loom_cuda_ops()->prepare(device, op, arguments, error);
}

void loom_cuda_cudnn_install(loom_ops *ops) {
    ops->attention_forward = forward;
    ops->attention_backward = backward;
    ops->supports = supports;
    ops->workspace = workspace;
    ops->prepare = prepare;
}
