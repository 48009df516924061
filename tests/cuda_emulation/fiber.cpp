#include "tests/cuda_emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "tests/cuda_emulation/sanitizers.h"

// What a call preserves (x86-64, System V) goes to the stack; the rest the compiler has saved around the call.
extern "C" void lacuna_switch_stack(void** save_stack_pointer, void* load_stack_pointer);
extern "C" void lacuna_first_call();
asm(R"(
.text
.type lacuna_switch_stack, @function
lacuna_switch_stack:
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
  popq %rcx
  jmp *%rcx
.size lacuna_switch_stack, .-lacuna_switch_stack
.type lacuna_first_call, @function
lacuna_first_call:
  xorl %ebp, %ebp
  andq $-16, %rsp
  call *%rbx
  ud2
.size lacuna_first_call, .-lacuna_first_call
)");

namespace lacuna::emulation {
namespace {

constexpr size_t kPage = 4096;
thread_local Context* left = nullptr;  // the context that the latest switch has left

void arrive(void* fake_stack) {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(fake_stack, &left->stack_bottom, &left->stack_size);
}

/// Stacks of earlier launches: fresh pages take longer than most kernels here.
class StackPool {
 public:
  std::byte* take() {
    const std::lock_guard lock(mutex_);
    if (bottoms_.empty()) return nullptr;
    std::byte* const bottom = bottoms_.back();
    bottoms_.pop_back();
    return bottom;
  }
  void put(std::byte* bottom) {
    const std::lock_guard lock(mutex_);
    bottoms_.push_back(bottom);
  }

 private:
  std::mutex mutex_;
  std::vector<std::byte*> bottoms_;
};

StackPool& unused_stacks() {
  static auto* const pool = new StackPool;  // of the process: OS threads live as long as a launch
  return *pool;
}

}  // namespace

Stack::Stack() : bottom_(unused_stacks().take()) {
  if (bottom_) return;
  void* memory = mmap(nullptr, kBytes + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(static_cast<std::byte*>(memory) + kPage, kBytes, PROT_READ | PROT_WRITE) != 0) {
    std::perror("emulation: no memory for the stack of a CUDA thread");
    std::abort();
  }
  bottom_ = static_cast<std::byte*>(memory) + kPage;
}

Stack::~Stack() {
  if (under_tsan())  // to which memory used again seems to be raced for
    munmap(bottom_ - kPage, kBytes + 2 * kPage);
  else
    unused_stacks().put(bottom_);
}

void start_fiber(Context& context, const Stack& stack, unsigned number, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack.bottom() + Stack::kBytes - 64 - number % 16 * 256);
  top[-1] = reinterpret_cast<void*>(&lacuna_first_call);
  top[-2] = nullptr;                         // rbp: the end of the chain of frames
  top[-3] = reinterpret_cast<void*>(entry);  // rbx
  context = {.stack_pointer = top - 7, .stack_bottom = stack.bottom(), .stack_size = Stack::kBytes};
  if (__tsan_create_fiber) context.tsan_fiber = __tsan_create_fiber(0);
}

void enter_fiber() { arrive(nullptr); }

void destroy_fiber(Context& context) {
  if (__tsan_destroy_fiber && context.tsan_fiber) __tsan_destroy_fiber(context.tsan_fiber);
  context.tsan_fiber = nullptr;
}

void switch_fiber(Context& from, Context& to, bool final) {
  left = &from;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(final ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_size);
  if (__tsan_switch_to_fiber) {
    if (!from.tsan_fiber) from.tsan_fiber = __tsan_get_current_fiber();  // the OS thread itself
    __tsan_switch_to_fiber(to.tsan_fiber, 1);                            // 1: without an edge of happens-before
  }
  lacuna_switch_stack(&from.stack_pointer, to.stack_pointer);
  arrive(from.fake_stack);
}

}  // namespace lacuna::emulation
