#include "core/allocator.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/error.h"

namespace lacuna {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kLargest = int64_t{1} << 48;  // more than any machine has; sums of sizes below never overflow
thread_local MemoryCategory t_category = MemoryCategory::activations;

/// Rounds up to one of eight sizes per power of two, so that near sizes share blocks at 12.5 % waste or less.
int64_t rounded_size(int64_t bytes) {
  int64_t step = kAlignment;
  while (step * 16 <= bytes) step *= 2;
  return (std::max<int64_t>(bytes, 1) + step - 1) / step * step;
}

std::string mebibytes(int64_t bytes) {
  const auto tenths = static_cast<int64_t>(static_cast<double>(bytes) / (1 << 20) * 10 + 0.5);
  return concat(tenths / 10, '.', tenths % 10, " MiB");
}

class CpuAllocator final : public Allocator {
 public:
  void* allocate(int64_t bytes, MemoryCategory category) override {
    check(bytes >= 0, "allocator: cannot allocate ", bytes, " bytes");
    const std::lock_guard lock(mutex_);
    if (bytes > kLargest) throw Error(out_of_memory(bytes, category));
    const int64_t size = rounded_size(bytes);
    void* block = take_cached(size);
    if (!block) block = from_system(size);
    if (!block) {
      free_cached();
      block = from_system(size);
    }
    if (!block) throw Error(out_of_memory(bytes, category));
    add(category, size);
    return block;
  }

  void deallocate(void* block, int64_t bytes, MemoryCategory category) noexcept override {
    const std::lock_guard lock(mutex_);
    const int64_t size = rounded_size(bytes);
    try {
      cache_[size].push_back(block);
      stats_.cached += size;
    } catch (const std::bad_alloc&) {
      std::free(block);
    }
    stats_.current[static_cast<size_t>(category)] -= size;
    stats_.total_current -= size;
  }

  MemoryStats stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  void reset_peak() override {
    const std::lock_guard lock(mutex_);
    stats_.peak = stats_.current;
    stats_.total_peak = stats_.total_current;
  }

  void set_limit(int64_t bytes) override {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
  }

  void release_cached() override {
    const std::lock_guard lock(mutex_);
    free_cached();
  }

 private:
  void* take_cached(int64_t size) {
    const auto found = cache_.find(size);
    if (found == cache_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    stats_.cached -= size;
    return block;
  }

  void* from_system(int64_t size) const {
    if (limit_ > 0 && stats_.total_current + stats_.cached + size > limit_) return nullptr;
    return std::aligned_alloc(kAlignment, static_cast<size_t>(size));
  }

  void free_cached() {
    for (auto& [size, blocks] : cache_)
      for (void* block : blocks) std::free(block);
    cache_.clear();
    stats_.cached = 0;
  }

  void add(MemoryCategory category, int64_t size) {
    const auto c = static_cast<size_t>(category);
    stats_.current[c] += size;
    stats_.peak[c] = std::max(stats_.peak[c], stats_.current[c]);
    stats_.total_current += size;
    stats_.total_peak = std::max(stats_.total_peak, stats_.total_current);
  }

  std::string out_of_memory(int64_t bytes, MemoryCategory category) const {
    std::string holders;
    for (int c = 0; c < kMemoryCategories; ++c)
      holders += concat(c ? ", " : "", name_of(static_cast<MemoryCategory>(c)), ' ',
                        mebibytes(stats_.current[static_cast<size_t>(c)]));
    return concat("out of memory on cpu: ", mebibytes(bytes), " for ", name_of(category), " requested while ",
                  mebibytes(stats_.total_current), " are in use (", holders, ")",
                  limit_ > 0 ? concat(", limit ", mebibytes(limit_)) : std::string(),
                  "; lower --batch-tokens, or the model's n_layers, d_model or n_ctx");
  }

  mutable std::mutex mutex_;
  std::unordered_map<int64_t, std::vector<void*>> cache_;  // rounded size -> free blocks
  MemoryStats stats_;
  int64_t limit_ = 0;
};

}  // namespace

std::string_view name_of(MemoryCategory category) {
  switch (category) {
    case MemoryCategory::parameters: return "parameters";
    case MemoryCategory::gradients: return "gradients";
    case MemoryCategory::optimizer: return "optimizer";
    case MemoryCategory::activations: return "activations";
    case MemoryCategory::workspace: return "workspace";
  }
  fail("name_of: unknown memory category ", static_cast<int>(category));
}

Allocator& Allocator::of(Device device) {
  check(device.type == DeviceType::cpu, "allocator: this build has no backend for ", device, ", only for cpu");
  static auto* allocator = new CpuAllocator;  // never destroyed: tensors with static lifetime may outlive main
  return *allocator;
}

MemoryScope::MemoryScope(MemoryCategory category) : previous_(t_category) { t_category = category; }
MemoryScope::~MemoryScope() { t_category = previous_; }
MemoryCategory MemoryScope::current() { return t_category; }

}  // namespace lacuna
