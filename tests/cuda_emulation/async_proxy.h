#pragma once
// What the units of sm_90 that work beside the threads of a block share.

#include <cstring>
#include <vector>

#include "tests/cuda_emulation/execution.h"
#include "tests/cuda_emulation/sanitizers.h"

namespace lacuna::emulation {

/// A unit to ThreadSanitizer: one more thread, ordered with the others by acquire and release alone.
class Observed {
 public:
  explicit Observed(const char* name);
  ~Observed();
  Observed(const Observed&) = delete;

  /// Calls body() as that thread; without ThreadSanitizer not at all.
  template <class Body>
  void as_thread(const Body& body) const {
    if (!fiber_) return;
    void* const before = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, 1);
    body();
    __tsan_switch_to_fiber(before, 1);
  }

 private:
  void* fiber_ = nullptr;
};

/// Dynamic shared memory as those units see it: through the asynchronous proxy, which what threads write reaches by
/// fence.proxy.async only. (Any thread's fence publishes what all have written.)
class AsyncProxy {
 public:
  static constexpr size_t kBase = 1024;  // the address of the first byte

  AsyncProxy(std::byte* memory, size_t bytes) : memory_(memory), seen_(bytes, std::byte{0xff}) {}

  /// The address of [p, p + bytes). Fails unless it is in there, at a multiple of `alignment`.
  size_t address(const void* p, size_t bytes, size_t alignment, const char* what, Location where) const;
  /// Those of an operand; fails when the two sides differ.
  const std::byte* read(size_t address, size_t bytes, Location where) const;
  void write(size_t address, const std::byte* from, size_t bytes);
  void publish() { std::memcpy(seen_.data(), memory_, seen_.size()); }

 private:
  std::byte* memory_;
  std::vector<std::byte> seen_;
};

/// Which other 16 bytes stand for those at `address`; gpu::Swizzle in `kind`.
inline size_t swizzled(size_t address, int kind) { return address ^ (address >> 7 & ((1u << kind) - 1)) << 4; }

}  // namespace lacuna::emulation
