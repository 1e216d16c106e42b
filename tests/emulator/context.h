// Switching between stacks, in a few instructions where the processor is known: swapcontext would cost a system call.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#define EMULATOR_UCONTEXT 1
#include <ucontext.h>
#endif

namespace fastrnn::emulator {

struct Context {
#if defined(EMULATOR_UCONTEXT)
  ucontext_t registers;
#else
  void* stack_pointer;  // what a function must preserve lies there
#endif
};

// Makes the first switch to `context` call entry(), which must not return, on the given stack.
void prepare(Context& context, unsigned char* stack, size_t size, void (*entry)());

// Goes on where `to` was left; returns when somebody switches to `from`.
void switch_context(Context& from, Context& to);

}  // namespace fastrnn::emulator
