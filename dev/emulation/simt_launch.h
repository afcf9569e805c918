/* Between the runtime (streams and graphs: stream.cpp, graph.cpp) and the execution of kernels (grid.cpp): a kernel call,
 * which is a kernel with its arguments copied, as CUDA copies them at the launch and at a graph's capture. */
#ifndef LOOM_SIMT_LAUNCH_H
#define LOOM_SIMT_LAUNCH_H

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace simt {

/* May be run any number of times, each time with the same arguments. */
struct kernel_call {
    std::string name;
    const void *function = nullptr; /* the kernel's address, by which cudaFuncSetAttribute knows it */
    dim3 grid, block;
    size_t shared_bytes = 0;         /* dynamic shared memory */
    std::vector<uint64_t> addresses; /* the arguments' words that may be addresses */

    virtual void run_thread() const = 0; /* one thread, whose indices are set */
    virtual ~kernel_call() = default;
};

template <typename... P> struct kernel_call_of final : kernel_call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;

    kernel_call_of(void (*k)(P...), P... a) : kernel(k), arguments(a...) {
        function = reinterpret_cast<const void *>(k);
        (note_addresses(a), ...);
    }
    void run_thread() const override {
        std::apply(kernel, arguments);
    }

  private:
    /* Pointers, and the words of structs; what lies between a struct's members may be anything, and is cleared. */
    template <typename T> void note_addresses(T argument) {
        if constexpr (std::is_pointer_v<T>) addresses.push_back(reinterpret_cast<uintptr_t>(argument));
#if __has_builtin(__builtin_clear_padding)
        if constexpr (std::is_class_v<T>) {
            __builtin_clear_padding(&argument);
            for (size_t i = 0; i + sizeof(uint64_t) <= sizeof argument; i += sizeof(uint64_t)) {
                addresses.push_back(0);
                memcpy(&addresses.back(), reinterpret_cast<const char *>(&argument) + i, sizeof(uint64_t));
            }
        }
#endif
    }
};

/* Whether CUDA would take this launch: cudaSuccess, cudaErrorInvalidConfiguration or cudaErrorInvalidValue. */
cudaError_t check_launch(const kernel_call &call);

/* cudaFuncSetAttribute's cudaFuncAttributeMaxDynamicSharedMemorySize. */
cudaError_t set_dynamic_shared_limit(const void *function, int bytes);

/* Runs the whole grid, returns when it has ended. False, with one line in *failure, if the kernel did what it must not. */
bool run(const kernel_call &call, std::string *failure);

/* The name under which this CPU thread's next launch is to be reported; launch() in kernels/kernel.h says it. */
void name_next_launch(const char *name);
std::string take_launch_name();

} // namespace simt

/* Puts the call into a stream, or into the graph that the stream is being captured into. In stream.cpp. */
cudaError_t emulation_enqueue(cudaStream_t stream, std::shared_ptr<simt::kernel_call> call);

#endif
