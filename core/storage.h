#pragma once
// The memory that tensors share.

#include <cstddef>
#include <cstdint>

#include "core/allocator.h"
#include "core/device.h"

namespace lacuna {

/// An owned, uninitialized block of bytes on a device, counted under the MemoryScope of its creation.
class Storage {
 public:
  Storage(int64_t bytes, Device device);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  MemoryCategory category() const { return category_; }

 private:
  int64_t bytes_;
  Device device_;
  MemoryCategory category_;
  std::byte* data_;
};

}  // namespace lacuna
