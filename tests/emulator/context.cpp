#include "context.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
// rdi: where to leave the stack pointer, rsi: the one to go on with.
asm(R"(
.text
.hidden fastrnn_emulator_switch
.type fastrnn_emulator_switch, @function
fastrnn_emulator_switch:
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
.size fastrnn_emulator_switch, .-fastrnn_emulator_switch
)");
constexpr int kSavedWords = 6, kReturnWord = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.hidden fastrnn_emulator_switch
.type fastrnn_emulator_switch, %function
fastrnn_emulator_switch:
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
.size fastrnn_emulator_switch, .-fastrnn_emulator_switch
)");
constexpr int kSavedWords = 20, kReturnWord = 11;
#endif

namespace fastrnn::emulator {

#if defined(EMULATOR_UCONTEXT)

void prepare(Context& context, unsigned char* stack, size_t size, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = size;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }

#else

extern "C" void fastrnn_emulator_switch(void** from, void* to);

void prepare(Context& context, unsigned char* stack, size_t size, void (*entry)()) {
  // As a call of entry() would leave it: above the saved words its return address, which is none.
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15};
  void** words = reinterpret_cast<void**>(top) - 2 - kSavedWords;
  std::memset(words, 0, (kSavedWords + 2) * sizeof(void*));
  words[kReturnWord] = reinterpret_cast<void*>(entry);
  context.stack_pointer = words;
}

void switch_context(Context& from, Context& to) { fastrnn_emulator_switch(&from.stack_pointer, to.stack_pointer); }

#endif

}  // namespace fastrnn::emulator
