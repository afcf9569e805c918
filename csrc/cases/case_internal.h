/* What the files of the harness share: how a case is held. Op authors need case.h only. */
#ifndef LOOM_CASES_CASE_INTERNAL_H
#define LOOM_CASES_CASE_INTERNAL_H

#include "base/check.h"
#include "cases/case.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_case_role { LOOM_CASE_UNUSED, LOOM_CASE_READ, LOOM_CASE_WRITTEN, LOOM_CASE_UPDATED } loom_case_role;

/* Which side's memory the views of an argument struct show: none (shapes alone), the device's, the oracle's. */
typedef enum loom_case_side { LOOM_CASE_SHAPES, LOOM_CASE_DEVICE, LOOM_CASE_ORACLE } loom_case_side;

typedef struct loom_case_tensor {
    const char *name;
    loom_case_kind kind;
    bool output;
    loom_case_size size;
    int64_t elements;
    loom_case_fill fill;
    loom_case_bound bound;
    loom_scalars scalars;               /* LOOM_CASE_SCALARS: at first */
    loom_case_role role[LOOM_CASE_OPS]; /* in each op of the file */
    int written_by;                     /* the op that writes it, or -1 */

    /* On the device: elements from the start of a memory, and strides. */
    int memory;
    int64_t offset, stride[4];

    /* On the host, contiguous; made by loom_case_make_values. */
    double *value;     /* before the op */
    double *reference; /* after it, by the oracle or the formula */
    double *found;     /* after it, by the device */
    void *oracle;      /* the oracle's memory: fp64, int32 or a loom_scalars */
    loom_scalars value_scalars, expected_scalars;
} loom_case_tensor;

/* Memory of the device that one or more tensors lie in. */
typedef struct loom_case_memory {
    const char *name;
    loom_case_kind kind;
    size_t bytes; /* of the tensors */
    size_t place; /* of the first tensor's first element, in the block */
    void *device; /* the first fence's address; NULL while the memory has no place */
} loom_case_memory;

/* All that a run needs on the device, in one allocation: the memories and the workspace, each between fences. */
typedef struct loom_case_block {
    void *device;
    size_t bytes;
    size_t workspace, workspace_bytes; /* where the workspace begins, and its size */
} loom_case_block;

struct loom_case {
    const loom_op_cases *cases;
    const loom_case_shape *shape;
    loom_case_dtypes dtypes;
    uint64_t seed;
    loom_case_tensor tensor[LOOM_CASE_TENSORS];
    int n_tensors;
    loom_case_memory memory[LOOM_CASE_TENSORS];
    int n_memories;
    loom_case_block block;
    struct {
        const char *output, *cotangent;
    } cotangent[LOOM_CASE_TENSORS];
    struct {
        const char *input, *gradient;
    } gradient[LOOM_CASE_TENSORS];
    int n_cotangents, n_gradients;
    unsigned without;    /* bit i: nothing is tested in storage dtype i */
    loom_case_side side; /* what views show now */
    int op;              /* whose arguments are being filled in */
};

enum { LOOM_CASE_FENCE = 512 }; /* bytes before and after each memory, a multiple of the alignment */

/* ----------------------------------------------------------------------------------------------------------- case.c */
loom_case_tensor *loom_case_find(loom_case *c, const char *name);

/* The dtype a tensor has on the device under test. */
loom_dtype loom_case_tensor_dtype(const loom_case *c, const loom_case_tensor *t);
/* Bytes of one element; of a scalars tensor, whose elements are fields, of the whole struct. */
size_t loom_case_tensor_item(const loom_case *c, const loom_case_tensor *t);

/* An op's arguments, with views of one side; and the call through a table. */
void loom_case_bind(loom_case *c, int op, loom_case_side side, loom_case_arguments *arguments);
void loom_case_call(loom_context *ctx, loom_op op, const loom_case_arguments *arguments);

/* Asks `supports`; if not, fills the result with why. */
bool loom_case_supported(loom_case *c, int op, loom_device *device, loom_case_result *result);

/* Finds the workspace with the planning table and makes plans with the preparing table, as the model does. Only for the
 * oracle's side do the views it gives them have data. */
bool loom_case_plan(loom_case *c, int op, loom_case_side side, loom_device *device, size_t *workspace,
                    loom_error *error);

/* ---------------------------------------------------------------------------------------------------- case_memory.c */
/* Gives the memories that any of some ops (bit i: the file's i-th) uses, and the workspace, their places on a device.
 * */
bool loom_case_allocate(loom_case *c, unsigned ops, size_t workspace_bytes, loom_device *device, loom_error *error);
void loom_case_release(loom_case *c, loom_device *device);

/* Runs one op there; what fails is told when the device is waited for. */
void loom_case_run(loom_case *c, int op, loom_device *device);

/* ----------------------------------------------------------------------------------------------------- case_value.c */
/* Allocates the host arrays (once) and fills `value` of the tensors that `op`, or one before it in the file, touches,
 * and of cotangents. */
bool loom_case_make_values(loom_case *c, int op, loom_error *error);
void loom_case_free_values(loom_case *c);
/* Elements 0 .. n - 1 of what a tensor holds at first, not yet rounded. */
enum { LOOM_CASE_PERIOD = 65521 };
void loom_case_generate(const loom_case *c, const loom_case_tensor *t, int64_t n, double *values);

/* Numbers as they are stored. */
double loom_case_load(const void *stored, loom_dtype dtype);
void loom_case_store(void *stored, loom_dtype dtype, double value);
double loom_case_round(loom_dtype dtype, double value);
double loom_case_epsilon(loom_dtype dtype);
double loom_case_smallest(loom_dtype dtype); /* denormal */

/* The fields of a loom_scalars as elements. */
enum { LOOM_CASE_FIELDS = 24 };
const char *loom_case_field_name(int64_t field);
bool loom_case_field_exact(int64_t field); /* what must be equal: inputs and counts */
void loom_case_scalars_load(const loom_scalars *scalars, double values[LOOM_CASE_FIELDS]);

/* Runs the file's op-th op on the oracle: from `value` of its inputs to `reference` of its outputs. */
bool loom_case_run_oracle(loom_case *c, int op, loom_device *oracle, loom_error *error);
/* Runs on the oracle the ops that write what `op` reads, and takes their results, rounded, as values. */
bool loom_case_derive(loom_case *c, int op, loom_device *oracle, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
