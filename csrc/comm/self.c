/* One rank: sums are what is there, and what moves is copied. */
#include "comm/backend.h"

#include "base/check.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>

typedef struct self {
    loom_comm_base base; /* first */
    loom_stream *stream;
} self;

static self *self_of(const loom_comm *comm) {
    return (self *)(uintptr_t)comm;
}

static bool attach(loom_comm *comm, size_t staging, loom_error *error) {
    (void)staging;
    return comm->device->stream_open(comm->device, &self_of(comm)->stream, error);
}

static size_t bytes_of(const loom_comm_operation *o) {
    return (size_t)o->count * loom_dtype_size(o->dtype);
}

static void post(loom_comm *comm, const loom_comm_operation *o, loom_stream *after) {
    loom_device *device = comm->device;
    loom_stream *stream = self_of(comm)->stream;
    device->stream_wait_stream(device, stream, after);
    if (o->out != o->in && o->count > 0)
        device->copy(device, stream, o->out, o->in, bytes_of(o), LOOM_DEVICE_TO_DEVICE);
}

static bool wait(loom_comm *comm, loom_comm_op_id op_id, loom_stream *stream, loom_error *error) {
    (void)op_id, (void)error;
    if (comm->device) comm->device->stream_wait_stream(comm->device, stream, self_of(comm)->stream);
    return true;
}

static bool synchronize(loom_comm *comm, loom_stream *stream, loom_error *error) {
    return comm->device->synchronize(comm->device, stream, error);
}

static bool run(loom_comm *comm, const loom_comm_operation *o, loom_error *error) {
    (void)comm, (void)error;
    if (o->out != o->in && o->count > 0) memcpy(o->out, o->in, bytes_of(o));
    return true;
}

static void end(loom_comm *comm, bool quiet, int status) {
    (void)comm, (void)quiet, (void)status;
}

static void close_self(loom_comm *comm) {
    if (comm->device) {
        comm->device->synchronize(comm->device, self_of(comm)->stream, NULL);
        comm->device->stream_close(comm->device, self_of(comm)->stream);
    }
    free(comm);
}

bool loom_comm_self_open(loom_comm **comm, const loom_comm_options *options, loom_comm *control, loom_error *error) {
    LOOM_CHECK(!control);
    static const loom_comm_backend backend = {.attach = attach,
                                              .post = post,
                                              .wait = wait,
                                              .synchronize = synchronize,
                                              .run = run,
                                              .abort = end,
                                              .close = close_self};
    self *s = calloc(1, sizeof *s);
    if (!s) return loom_fail(error, "no memory for a communicator");
    *comm = &s->base.comm;
    **comm = (loom_comm){.name = "self",
                         .description = "one rank",
                         .size = 1,
                         .local_size = 1,
                         .timeout = options->timeout,
                         .step = -1,
                         .is_reporter = true,
                         .backend = &backend};
    return true;
}
