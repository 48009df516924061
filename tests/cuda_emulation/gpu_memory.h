#pragma once
// What tests that run on the emulated GPU and on a real one alike need of its memory.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#if LACUNA_ON_GPU
#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "core/tensor.h"
#else
#include "tests/cuda_emulation/runtime_emulated.h"
#endif

namespace lacuna::test {

/// Bytes that tensors hold; of the emulated GPU, which keeps no freed blocks, bytes of all its blocks.
inline int64_t gpu_bytes_in_use() {
#if LACUNA_ON_GPU
  return Allocator::of(kCuda).stats().total_current;
#else
  return emulation::bytes_in_use();
#endif
}

/// Where tests launch kernels of their own. The emulator runs them before the launch returns.
inline Stream gpu_stream() {
#if LACUNA_ON_GPU
  return gpu::compute_stream(kCuda);
#else
  return {};
#endif
}

/// The elements of a vector, for kernels of gpu_stream(). Under emulation they use the vector itself, whose bounds
/// AddressSanitizer knows.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : DeviceArray(std::vector<T>(size)) {}
#if LACUNA_ON_GPU
  explicit DeviceArray(const std::vector<T>& x)
      : size_(x.size()), bytes_(empty({static_cast<int64_t>(sizeof(T) * x.size())}, DType::u8, kCuda)) {
    gpu::copy_bytes(gpu_stream(), bytes_.raw(), x.data(), bytes_.bytes());
    gpu::synchronize(gpu_stream());
  }
  T* data() { return reinterpret_cast<T*>(bytes_.raw()); }
  std::vector<T> to_vector() const {
    std::vector<T> x(size_);
    gpu::copy_bytes(gpu_stream(), x.data(), bytes_.raw(), bytes_.bytes());
    gpu::synchronize(gpu_stream());
    return x;
  }

 private:
  size_t size_;
  Tensor bytes_;
#else
  explicit DeviceArray(std::vector<T> x) : x_(std::move(x)) {}
  T* data() { return x_.data(); }
  std::vector<T> to_vector() const { return x_; }

 private:
  std::vector<T> x_;
#endif
};

}  // namespace lacuna::test
