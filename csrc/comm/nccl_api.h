/* The functions of NCCL that we call, loaded at run time. NCCL's header need not be there: what it fixes is said again
 * here, in types of our own that a compiler passes alike (test_comm holds them against the header where there is one).
 * */
#ifndef LOOM_COMM_NCCL_API_H
#define LOOM_COMM_NCCL_API_H

#include "gptloom/error.h"

#include <stddef.h>

typedef struct loom_nccl_id {
    char bytes[128];
} loom_nccl_id;

/* ncclConfig_t as of 2.18; its size tells later libraries that the rest is not given. */
typedef struct loom_nccl_config {
    size_t size;
    unsigned int magic, version;
    int blocking, cluster_size, least_ctas, most_ctas;
    const char *net_name;
    int split_share;
} loom_nccl_config;

enum { /* ncclResult_t */
       LOOM_NCCL_SUCCESS = 0,
       LOOM_NCCL_INVALID_USAGE = 5,
       LOOM_NCCL_REMOTE_ERROR = 6,
       LOOM_NCCL_IN_PROGRESS = 7
};
enum { /* ncclDataType_t */
       LOOM_NCCL_UINT8 = 1,
       LOOM_NCCL_INT32 = 2,
       LOOM_NCCL_INT64 = 4,
       LOOM_NCCL_FLOAT16 = 6,
       LOOM_NCCL_FLOAT32 = 7,
       LOOM_NCCL_FLOAT64 = 8,
       LOOM_NCCL_BFLOAT16 = 9
};
enum { LOOM_NCCL_SUM = 0 }; /* ncclRedOp_t */
enum {
    LOOM_NCCL_OLDEST = 21800,
    LOOM_NCCL_MAGIC = 0xcafebeef,
    LOOM_NCCL_UNDEFINED = -2147483647 - 1 /* of the configuration's numbers */
};

/* Results, types and operations are NCCL's enumerations; `comm` is ncclComm_t, `stream` cudaStream_t. */
#define LOOM_NCCL_FUNCTIONS(X)                                                                                         \
    X(int, GetVersion, (int *version))                                                                                 \
    X(const char *, GetErrorString, (int result))                                                                      \
    X(const char *, GetLastError, (void *comm))                                                                        \
    X(int, GetUniqueId, (loom_nccl_id * id))                                                                           \
    X(int, CommInitRankConfig, (void **comm, int ranks, loom_nccl_id id, int rank, loom_nccl_config *config))          \
    X(int, CommGetAsyncError, (void *comm, int *result))                                                               \
    X(int, CommFinalize, (void *comm))                                                                                 \
    X(int, CommDestroy, (void *comm))                                                                                  \
    X(int, CommAbort, (void *comm))                                                                                    \
    X(int, AllReduce, (const void *in, void *out, size_t count, int type, int op, void *comm, void *stream))           \
    X(int, ReduceScatter, (const void *in, void *out, size_t count, int type, int op, void *comm, void *stream))       \
    X(int, AllGather, (const void *in, void *out, size_t count, int type, void *comm, void *stream))                   \
    X(int, Broadcast, (const void *in, void *out, size_t count, int type, int root, void *comm, void *stream))         \
    X(int, Send, (const void *in, size_t count, int type, int peer, void *comm, void *stream))                         \
    X(int, Recv, (void *out, size_t count, int type, int peer, void *comm, void *stream))                              \
    X(int, GroupStart, (void))                                                                                         \
    X(int, GroupEnd, (void))

typedef struct loom_nccl_api {
    int version; /* 21805: 2.18.5 */
#define LOOM_NCCL_MEMBER(result, name, arguments) result(*name) arguments;
    LOOM_NCCL_FUNCTIONS(LOOM_NCCL_MEMBER)
#undef LOOM_NCCL_MEMBER
} loom_nccl_api;

/* Loads NCCL once for the process: `file`, or what LOOM_NCCL says, or libnccl.so.2. NULL with an error if there is none
 * that we can use. */
const loom_nccl_api *loom_nccl_load(const char *file, loom_error *error);

#endif
