/* A device: where memory lies and ops run. "cpu" is the tuned CPU, "definition" the same sources without the tuned
 * replacements and without libraries, "oracle" those sources in double precision, which tests compare with. */
#ifndef GPTLOOM_DEVICE_H
#define GPTLOOM_DEVICE_H

#include "gptloom/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_copy_kind { LOOM_HOST_TO_DEVICE, LOOM_DEVICE_TO_HOST, LOOM_DEVICE_TO_DEVICE } loom_copy_kind;

typedef struct loom_device_options {
    int threads;          /* CPU: 0 takes all that the process may run on */
    bool library_threads; /* CPU: products are threaded by the matrix library, which may let their bits depend on
                                  the number of threads */
} loom_device_options;

struct loom_device {
    const char *name;      /* "cpu", "definition", "oracle" */
    char description[160]; /* "2 threads, AVX-512, oneDNN 2.6.3" */
    const loom_ops *ops;
    loom_dtype storage;    /* what parameters and activations are stored in: fp32; fp64 on the oracle */
    loom_dtype statistics; /* of mean, rstd, lse, losses and partial sums: fp32; fp64 on the oracle */
    int threads;
    bool host_memory; /* the host may touch the device's memory */
    /* Memory that ops can use, aligned to 256 bytes, or false with the size and what is free. */
    bool (*allocate)(loom_device *device, void **memory, size_t bytes, loom_error *error);
    void (*release)(loom_device *device, void *memory, size_t bytes);
    /* In the stream's order; host memory may be reused when the stream has been waited for. */
    void (*copy)(loom_device *device, loom_stream *stream, void *to, const void *from, size_t bytes, loom_copy_kind);
    /* Waits for all work in the stream; false if any of it failed. */
    bool (*synchronize)(loom_device *device, loom_stream *stream, loom_error *error);
    /* Bytes that can still be allocated without harm. */
    size_t (*available)(const loom_device *device);
    void (*close)(loom_device *device);
    void *implementation;
};

/* "auto" takes the fastest device that works. */
bool loom_device_open(loom_device **device, const char *name, const loom_device_options *options, loom_error *error);
void loom_device_close(loom_device *device);

/* A value that ops will be asked for often; runs a short probe of arithmetic on all threads (about `seconds`). Returns
 * floating-point operations per second of the device's storage type. */
double loom_device_probe_peak(loom_device *device, double seconds);

#ifdef __cplusplus
}
#endif
#endif
