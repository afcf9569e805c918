/* A device: where memory lies and ops run. "cpu" is the tuned CPU, "definition" the same sources without the tuned
 * replacements and without libraries, "oracle" those sources in double precision, which tests compare with; "cuda" is
 * an NVIDIA GPU, or its emulation.
 *
 * Work is put into streams. What is in one stream runs in order; streams run beside each other unless
 * `stream_wait_stream` says what waits for what. On a CPU everything has happened when the call returns, and there is
 * one stream, NULL. */
#ifndef GPTLOOM_DEVICE_H
#define GPTLOOM_DEVICE_H

#include "gptloom/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_copy_kind { LOOM_HOST_TO_DEVICE, LOOM_DEVICE_TO_HOST, LOOM_DEVICE_TO_DEVICE } loom_copy_kind;

/* Who multiplies matrices on a CPU; sums are fp32 and roundings the same in all. */
typedef enum loom_products {
    LOOM_PRODUCTS_AUTO, /* as LOOM_PRODUCTS in the environment says (own or library); else the library where it is
                             faster with the instructions that are taken, and of bf16 where the processor multiplies it
                             (AVX512_BF16, AMX), or gptloom itself */
    LOOM_PRODUCTS_OWN,  /* gptloom itself, which widens bf16 and fp16 as it reads them */
    LOOM_PRODUCTS_LIBRARY /* the library, if it can work in this process; of bf16 even where it emulates the instructions */
} loom_products;

typedef struct loom_device_options {
    int threads; /* CPU: 0 takes all that the process may run on, or this rank's part of them */
    loom_products products;
    bool library_threads; /* CPU: the library's products are threaded by itself, which may let their bits depend on the
                             number of threads */
    bool tf32;            /* CUDA: products of fp32 matrices round their inputs to TF32 */
    bool cudnn_attention; /* CUDA: attention by cuDNN instead of our kernels */
    /* Among the ranks of this machine (loom_comm has both); 0 and 0 or 1: alone. Ranks take the machine's GPUs in turn,
     * and share them where there are more ranks. Of the CPU each has a part, unless mpirun or srun has bound it to some
     * processors: then these are its own. */
    int local_rank, local_size;
} loom_device_options;

/* A place in a stream's work, for other streams and the host to wait for. */
typedef struct loom_event loom_event;

/* A sequence of ops and copies that the device keeps, to run it again at once. */
typedef struct loom_device_graph loom_device_graph;

struct loom_device {
    const char *name;          /* "cpu", "cuda", "cuda (emulated)", "definition", "oracle" */
    char description[256];     /* "2 threads, AVX-512, matrix products by oneDNN 2.6.3" */
    char gpu_skip_reason[256]; /* why "auto" did not take a GPU that is there; "" if none is */
    const loom_ops *ops;
    loom_dtype storage;       /* the widest that parameters and activations are stored in: fp32; fp64 on the oracle */
    loom_dtype statistics;    /* of mean, rstd, lse, losses and partial sums: fp32; fp64 on the oracle */
    unsigned emulated_dtypes; /* bit i: products of dtype i are computed in fp32: that saves memory and no time */
    int threads;              /* of the CPU, for what the host does beside the device too */
    bool host_memory;         /* the host may touch the device's memory */
    size_t reserved;          /* of its memory, which a run cannot have: a GPU's, for the CUDA context and libraries */
    /* What, besides the device's name, the exact bits of a run that stores its weights so depend on: of a CPU "AVX-512,
     * products by oneDNN 2.6.3"; "" where they depend on nothing else. */
    void (*arithmetic)(const loom_device *device, loom_dtype storage, char *text, size_t size);
    /* Memory that ops can use, aligned to 256 bytes, or false with the size and what is free. */
    bool (*allocate)(loom_device *device, void **memory, size_t bytes, loom_error *error);
    void (*release)(loom_device *device, void *memory, size_t bytes);
    /* Host memory that copies can use without waiting (pinned); like any other for everything else. */
    bool (*allocate_host)(loom_device *device, void **memory, size_t bytes, loom_error *error);
    void (*release_host)(loom_device *device, void *memory, size_t bytes);
    /* In the stream's order; host memory may be reused when the stream has been waited for. */
    void (*copy)(loom_device *device, loom_stream *stream, void *to, const void *from, size_t bytes, loom_copy_kind);
    /* Waits for all work in the stream; false if any of it failed. */
    bool (*synchronize)(loom_device *device, loom_stream *stream, loom_error *error);
    /* Another stream beside the default one; NULL where there is only one. */
    bool (*stream_open)(loom_device *device, loom_stream **stream, loom_error *error);
    void (*stream_close)(loom_device *device, loom_stream *stream);
    /* What is put into `later` from now on waits for what `earlier` holds now. */
    void (*stream_wait_stream)(loom_device *device, loom_stream *later, loom_stream *earlier);
    /* An event is a place in a stream. `event_record` puts it behind what the stream holds now (and takes it from where
     * it was); with `stream_wait_event` what is put into a stream from now on waits for it; `event_query` asks, without
     * waiting, whether all before it is done; with `event_synchronize` the host waits. A second thread of the host may
     * call these two, and on a stream of its own `copy`, `event_record` and `synchronize`; no other of the device's
     * functions. An event that was never recorded is reached. */
    bool (*event_open)(loom_device *device, loom_event **event, loom_error *error);
    void (*event_close)(loom_device *device, loom_event *event);
    void (*event_record)(loom_device *device, loom_event *event, loom_stream *stream);
    void (*stream_wait_event)(loom_device *device, loom_stream *stream, loom_event *event);
    bool (*event_query)(loom_device *device, loom_event *event, bool *reached, loom_error *error);
    bool (*event_synchronize)(loom_device *device, loom_event *event, loom_error *error);
    /* An event that also knows when it was reached; the time between two such, which both have been. */
    bool (*timed_event_open)(loom_device *device, loom_event **event, loom_error *error);
    bool (*event_elapsed)(loom_device *device, loom_event *first, loom_event *second, double *seconds,
                          loom_error *error);
    /* Graphs: what is put into the default stream between begin and end is captured instead of run. A launch runs it
     * with the same addresses and arguments, reading memory as it is then. All NULL where nothing would be gained. */
    bool (*graph_begin)(loom_device *device, loom_error *error);
    bool (*graph_end)(loom_device *device, loom_device_graph **graph, loom_error *error);
    void (*graph_launch)(loom_device *device, loom_device_graph *graph);
    void (*graph_close)(loom_device *device, loom_device_graph *graph);
    /* The time that passes on the device between what is in the default stream at the two calls. `timer_stop` waits. */
    void (*timer_start)(loom_device *device);
    bool (*timer_stop)(loom_device *device, double *seconds, loom_error *error);
    /* Names what follows, for profilers; NULL where there is none. */
    void (*range_push)(loom_device *device, const char *name);
    void (*range_pop)(loom_device *device);
    /* The tuning cache: what `prepare` has autotuned, as lines of text to keep with a run; NULL text where nothing was.
     * Given back before preparing, the same is taken without measuring; lines for other hardware or libraries are
     * refused. */
    bool (*tuning_get)(const loom_device *device, char **text, loom_error *error);
    bool (*tuning_set)(loom_device *device, const char *text, loom_error *error);
    /* Floating-point operations per second of large matrix products of a storage type, measured for `seconds`. */
    bool (*peak)(loom_device *device, loom_dtype dtype, double seconds, double *rate, loom_error *error);
    /* Bytes that can still be allocated without harm. Ranks that share the memory get equal parts of what is free: ask
     * before any of them allocates. */
    size_t (*available)(const loom_device *device);
    /* Bytes of host memory (`allocate_host`) of which the same is true. */
    size_t (*available_host)(const loom_device *device);
    void (*close)(loom_device *device);
    void *implementation;
};

/* "auto" takes the fastest device that works: a GPU, if it is none that is emulated. */
bool loom_device_open(loom_device **device, const char *name, const loom_device_options *options, loom_error *error);
void loom_device_close(loom_device *device);

/* A GPU that is not here, with so much memory, of which so much is reserved. It answers for shapes (supports,
 * workspace, available): enough to plan a run on it. Nothing can be allocated there and nothing runs. */
bool loom_device_open_shapes(loom_device **device, size_t memory, size_t reserved, loom_error *error);

/* What of CUDA is in this program, and which cuBLASLt it finds: "CUDA 13.0, cuBLASLt 13.1.0"; or that it has none. */
const char *loom_device_cuda_build(void);

/* The tuning cache as a file in a run and in a checkpoint: its name, its name in earlier versions, and how its text
 * begins. */
#define LOOM_TUNING_FILE         "tuning.txt"
#define LOOM_EARLIER_TUNING_FILE "choices.txt"
#define LOOM_TUNING_BEGIN        "measured on "

/* Gives the device the tuning cache that a file holds; before anything is prepared on it. */
bool loom_device_read_tuning(loom_device *device, const char *path, loom_error *error);

/* The same of the file in a run or in a checkpoint, that of an earlier version only where there is no other; true where
 * there is none. False where the file cannot be read, or is of other hardware or libraries. */
bool loom_device_restore_tuning(loom_device *device, const char *directory, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
