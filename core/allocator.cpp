#include "core/allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/error.h"

namespace lacuna {
namespace {

constexpr int64_t kLargest = int64_t{1} << 48;  // more than any machine has; sums of sizes below never overflow
thread_local MemoryCategory t_category = MemoryCategory::activations;

/// Where blocks come from: the system of one device.
struct Source {
  Device device;
  int64_t granularity;  // sizes are multiples of it; 0: blocks have exactly the size asked for, and none is kept
  void* (*allocate)(Device device, int64_t bytes);  // null when there is no such block
  void (*free)(Device device, void* block);
  std::string (*capacity)(Device device);  // for the report when memory is exhausted
};

/// Rows of tensors lie far apart, each in a small page of its own: whole huge pages of a block are asked for as such.
void* host_block(Device, int64_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const auto size = static_cast<size_t>(bytes);
  if (size < kHugePage) return std::aligned_alloc(64, size);
  void* block = nullptr;
  if (posix_memalign(&block, kHugePage, size) != 0) return nullptr;
  madvise(block, size / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish
  return block;
}

constexpr Source kHost{kCpu, 64, host_block,
                       [](Device, void* block) { std::free(block); }, [](Device) { return std::string(); }};

std::string mebibytes(int64_t bytes) {
  const auto tenths = static_cast<int64_t>(static_cast<double>(bytes) / (1 << 20) * 10 + 0.5);
  return concat(tenths / 10, '.', tenths % 10, " MiB");
}

class CachingAllocator final : public Allocator {
 public:
  explicit CachingAllocator(const Source& source) : source_(source) {}

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
    if (!keep(block, size)) source_.free(source_.device, block);
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
  /// Rounds up to one of eight sizes per power of two, so that near sizes share blocks at 12.5 % waste or less.
  int64_t rounded_size(int64_t bytes) const {
    if (source_.granularity == 0) return std::max<int64_t>(bytes, 1);
    int64_t step = source_.granularity;
    while (step * 16 <= bytes) step *= 2;
    return (std::max<int64_t>(bytes, 1) + step - 1) / step * step;
  }

  bool keep(void* block, int64_t size) noexcept {
    if (source_.granularity == 0) return false;
    try {
      cache_[size].push_back(block);
    } catch (const std::bad_alloc&) {
      return false;
    }
    stats_.cached += size;
    return true;
  }

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
    return source_.allocate(source_.device, size);
  }

  void free_cached() {
    for (auto& [size, blocks] : cache_)
      for (void* block : blocks) source_.free(source_.device, block);
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
    return concat("out of memory on ", source_.device, ": ", mebibytes(bytes), " for ", name_of(category), " requested while ",
                  mebibytes(stats_.total_current), " are in use (", holders, ")",
                  limit_ > 0 ? concat(", limit ", mebibytes(limit_)) : std::string(), source_.capacity(source_.device),
                  "; lower --batch-tokens, or the model's n_layers, d_model or n_ctx");
  }

  Source source_;
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

// Allocators are never destroyed: tensors with static lifetime may outlive main.
Allocator& Allocator::of(Device device) {
  if (device.type == DeviceType::cpu) {
    static auto* host = new CachingAllocator(kHost);
    return *host;
  }
  gpu::check_usable(device);
  static auto* const allocators = [] {
    auto* all = new std::vector<std::unique_ptr<CachingAllocator>>;
    for (int index = 0; index < gpu::device_count(); ++index)
      all->push_back(std::make_unique<CachingAllocator>(
          Source{{DeviceType::cuda, index}, gpu::reuses_blocks() ? 512 : 0, gpu::allocate, gpu::deallocate, [](Device d) {
                   return concat(", memory of the device ", mebibytes(gpu::properties(d).memory_bytes));
                 }}));
    return all;
  }();
  return *allocators->at(static_cast<size_t>(device.index));
}

MemoryScope::MemoryScope(MemoryCategory category) : previous_(t_category) { t_category = category; }
MemoryScope::~MemoryScope() { t_category = previous_; }
MemoryCategory MemoryScope::current() { return t_category; }

}  // namespace lacuna
