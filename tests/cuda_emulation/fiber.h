#pragma once
// Points of execution that can be left and resumed within one OS thread, known to the sanitizers.

#include <cstddef>

namespace lacuna::emulation {

/// Memory for a stack, between two pages that nothing may touch.
class Stack {
 public:
  static constexpr size_t kBytes = 256 * 1024;  // sanitizers need room; pages not touched cost nothing
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  std::byte* bottom() const { return bottom_; }

 private:
  std::byte* bottom_;
};

/// The OS thread's own point of execution, or a fiber's.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;  // these three for AddressSanitizer
  size_t stack_size = 0;
  void* fake_stack = nullptr;
  void* tsan_fiber = nullptr;
};

/// Makes `context` a fiber that calls `entry` when it is first resumed; `entry` starts with enter_fiber() and never
/// returns. Stacks get different `number`s: all at the same offset in their pages, they would share cache sets.
void start_fiber(Context& context, const Stack& stack, unsigned number, void (*entry)());
void enter_fiber();
void destroy_fiber(Context& context);

/// Leaves `from`, which is running, and resumes `to`. Orders no memory accesses. A fiber's last switch is its `final`.
void switch_fiber(Context& from, Context& to, bool final = false);

}  // namespace lacuna::emulation
