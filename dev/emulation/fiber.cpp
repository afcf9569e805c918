#include "fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include <sys/mman.h>

namespace simt {

/* ----------------------------------------------------------------------------------------------------------- stacks */

constexpr size_t GUARD_BYTES = 4096;
constexpr size_t STRIDE = STACK_BYTES + GUARD_BYTES;

char *allocate_stacks(int count) {
    void *at = mmap(nullptr, STRIDE * (size_t)count, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        fprintf(stderr, "gptloom: no address space for the emulation's %d stacks\n", count);
        abort();
    }
    char *stacks = static_cast<char *>(at);
    for (int i = 0; i < count; i++) mprotect(stacks + STRIDE * (size_t)i, GUARD_BYTES, PROT_NONE);
    return stacks;
}

void free_stacks(char *stacks, int count) {
    munmap(stacks, STRIDE * (size_t)count);
}

char *stack_at(char *stacks, int i) {
    return stacks + STRIDE * (size_t)i + GUARD_BYTES;
}

/* ---------------------------------------------------------------------------------------------------- a stack's start
 * The highest 8 KiB are kept for staggering: 64 bytes times one of 61 places, a prime, so that neighbours spread. */

static uintptr_t stack_top(const fiber *f, unsigned stagger) {
    return ((uintptr_t)f->stack + STACK_BYTES - 64 - stagger % 61 * 64) & ~(uintptr_t)15;
}

#ifdef LOOM_FIBER_UCONTEXT
static void begin_fiber(fiber *f, void (*entry)(), unsigned stagger) {
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = stack_top(f, stagger) - (uintptr_t)f->stack;
    f->context.uc_link = nullptr;
    makecontext(&f->context, entry, 0);
}

static void switch_stack(fiber *from, fiber *to) {
    swapcontext(&from->context, &to->context);
}
#else

#    if defined(__x86_64__)
/* What the System V ABI preserves: rbx, rbp, r12 to r15. The return address is the fiber's place. */
asm(R"(
.text
.globl loom_switch_stack
.type loom_switch_stack, @function
loom_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size loom_switch_stack, .-loom_switch_stack
)");

/* Six registers, the address that `ret` goes to, and a return address of zero for it: at a function's first instruction
 * the stack is 8 bytes away from a multiple of 16. */
static void *first_frame(uintptr_t top, void (*entry)()) {
    void **sp = reinterpret_cast<void **>(top);
    *--sp = nullptr;
    *--sp = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
#    else
/* What AAPCS64 preserves: x19 to x30 (x30 is the return address) and the low halves of v8 to v15. */
asm(R"(
.text
.globl loom_switch_stack
.type loom_switch_stack, %function
loom_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size loom_switch_stack, .-loom_switch_stack
)");

static void *first_frame(uintptr_t top, void (*entry)()) {
    void **sp = reinterpret_cast<void **>(top - 160);
    for (int i = 0; i < 20; i++) sp[i] = nullptr;
    sp[11] = reinterpret_cast<void *>(entry);
    return sp;
}
#    endif

static void begin_fiber(fiber *f, void (*entry)(), unsigned stagger) {
    f->stack_pointer = first_frame(stack_top(f, stagger), entry);
}

#    ifdef LOOM_ASAN
extern "C" void loom_switch_stack(void **save, void *load);

static void switch_stack(fiber *from, fiber *to) {
    loom_switch_stack(&from->stack_pointer, to->stack_pointer);
}
#    endif
#endif

/* ----------------------------------------------------------------------------------------------- with AddressSanitizer
 * It is told of every switch, and of the bounds of the stack that is switched to. Those of a CPU thread's own stack are
 * learnt when a fiber is first entered from there. */

#ifdef LOOM_ASAN
static thread_local fiber *switched_from = nullptr;

void start_fiber(fiber *f, void (*entry)(), unsigned stagger) {
    f->bottom = f->stack;
    f->bytes = STACK_BYTES;
    f->fake_stack = nullptr;
    begin_fiber(f, entry, stagger);
}

void forget_frames(fiber *f) {
    ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK_BYTES);
}

void fiber_entered() {
    fiber *from = switched_from;
    const void *bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!from->stack) {
        from->bottom = bottom;
        from->bytes = bytes;
    }
}

void switch_fiber(fiber *from, fiber *to) {
    switched_from = from;
    __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->bytes);
    switch_stack(from, to);
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
}

void leave_fiber(fiber *from, fiber *to) {
    switched_from = from;
    __sanitizer_start_switch_fiber(nullptr, to->bottom, to->bytes);
    switch_stack(from, to);
}
#else
void start_fiber(fiber *f, void (*entry)(), unsigned stagger) {
    begin_fiber(f, entry, stagger);
}

void forget_frames(fiber *) {
}

void fiber_entered() {
}

#    ifdef LOOM_FIBER_UCONTEXT
void switch_fiber(fiber *from, fiber *to) {
    switch_stack(from, to);
}

void leave_fiber(fiber *from, fiber *to) {
    switch_stack(from, to);
}
#    endif
#endif

} // namespace simt
