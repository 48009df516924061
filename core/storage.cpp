#include "core/storage.h"

namespace lacuna {

Storage::Storage(int64_t bytes, Device device)
    : bytes_(bytes),
      device_(device),
      category_(MemoryScope::current()),
      data_(static_cast<std::byte*>(Allocator::of(device).allocate(bytes, category_))) {}

Storage::~Storage() { Allocator::of(device_).deallocate(data_, bytes_, category_); }

}  // namespace lacuna
