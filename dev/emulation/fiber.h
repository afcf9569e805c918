/* Fibers: stacks that hand the processor to each other without the operating system. A switch saves the registers that
 * a function call preserves, a few nanoseconds; ucontext's swapcontext, the portable way, also makes a system call. */
#ifndef LOOM_EMULATION_FIBER_H
#define LOOM_EMULATION_FIBER_H

#include <cstddef>

/* -DLOOM_FIBER_UCONTEXT takes the portable way everywhere. */
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(LOOM_FIBER_UCONTEXT)
#    define LOOM_FIBER_UCONTEXT 1
#endif
#ifdef LOOM_FIBER_UCONTEXT
#    include <ucontext.h>
#endif

#ifndef __has_feature
#    define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#    define LOOM_ASAN 1
#    include <sanitizer/asan_interface.h>
#    include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

#ifdef LOOM_ASAN
constexpr size_t STACK_BYTES = 256 * 1024; /* its frames are larger */
#else
constexpr size_t STACK_BYTES = 64 * 1024;
#endif

struct fiber {
#ifdef LOOM_FIBER_UCONTEXT
    ucontext_t context;
#else
    void *stack_pointer = nullptr; /* where its registers are saved while it does not run */
#endif
    char *stack = nullptr; /* lowest address; null for the fiber that is a CPU thread's own stack */
#ifdef LOOM_ASAN
    const void *bottom = nullptr; /* what AddressSanitizer must know of a stack that is switched to */
    size_t bytes = 0;
    void *fake_stack = nullptr;
#endif
};

/* Memory for `count` stacks, each with a page below it that may not be touched, so that an overflow ends the program
 * there and does not spoil a neighbour. Aborts if there is none: it is address space, not yet memory. */
char *allocate_stacks(int count);
void free_stacks(char *stacks, int count);
char *stack_at(char *stacks, int i);

/* Makes the next switch to `f` call entry() on its stack, which must not return. `stagger` (any number, best different
 * for each fiber) moves the stack's first frame by some cache lines, so that the frames of many fibers do not compete
 * for the same places of the cache. */
void start_fiber(fiber *f, void (*entry)(), unsigned stagger);

/* To be called for a fiber that was left in the midst of functions that will never return, before its stack is used
 * again. */
void forget_frames(fiber *f);

/* To be called first in entry(). */
void fiber_entered();

#if defined(LOOM_ASAN) || defined(LOOM_FIBER_UCONTEXT)
/* Runs `to` until something switches back to `from`, which is the fiber that calls. */
void switch_fiber(fiber *from, fiber *to);

/* Runs `to`; nothing will ever switch back. */
void leave_fiber(fiber *from, fiber *to);
#else
extern "C" void loom_switch_stack(void **save, void *load);

static inline void switch_fiber(fiber *from, fiber *to) {
    loom_switch_stack(&from->stack_pointer, to->stack_pointer);
}
static inline void leave_fiber(fiber *from, fiber *to) {
    switch_fiber(from, to);
}
#endif

} // namespace simt
#endif
