#pragma once
// Memory of a device, counted by what it is for.

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

#include "core/device.h"

namespace lacuna {

/// What a piece of memory is for. `plan` predicts and the allocator measures use in these terms.
enum class MemoryCategory : uint8_t { parameters, gradients, optimizer, activations, workspace };
inline constexpr int kMemoryCategories = 5;
std::string_view name_of(MemoryCategory category);

/// Bytes in use by live tensors, now and at most since the last reset_peak(). A tensor counts as its block, which is up
/// to 12.5 % larger than its elements (and at least 64 bytes, 512 on a GPU).
struct MemoryStats {
  std::array<int64_t, kMemoryCategories> current{};  // by category
  std::array<int64_t, kMemoryCategories> peak{};     // by category, each at its own worst moment
  int64_t total_current = 0;
  int64_t total_peak = 0;                            // the worst moment of the sum, at most the sum of `peak`
  int64_t cached = 0;                                // freed by tensors, kept for reuse
};

/// A caching allocator: freed blocks are kept by size and reused by later requests of the same rounded size.
/// Thread-safe. Blocks are aligned to 64 bytes on the CPU, to 256 on a GPU. Memory is not cleared.
///
/// On a GPU blocks belong to the compute stream: one that is freed while kernels enqueued earlier still use it may be
/// given out at once, for whatever uses it next is enqueued after them.
class Allocator {
 public:
  virtual ~Allocator() = default;

  /// The allocator of a device. Throws Error when the build has no such device.
  static Allocator& of(Device device);

  /// At least `bytes` bytes. When memory or the limit is exhausted, returns cached blocks to the system and tries
  /// again, then throws Error with the request, the holders by category and what to change.
  virtual void* allocate(int64_t bytes, MemoryCategory category) = 0;
  virtual void deallocate(void* block, int64_t bytes, MemoryCategory category) noexcept = 0;

  virtual MemoryStats stats() const = 0;
  virtual void reset_peak() = 0;

  /// Refuses requests that would take live plus cached memory over `bytes`; 0 means no limit.
  virtual void set_limit(int64_t bytes) = 0;

  /// Returns cached blocks to the system.
  virtual void release_cached() = 0;
};

/// While alive, tensors that this thread allocates count under `category`. The default is activations.
class MemoryScope {
 public:
  explicit MemoryScope(MemoryCategory category);
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;
  static MemoryCategory current();

 private:
  MemoryCategory previous_;
};

}  // namespace lacuna
