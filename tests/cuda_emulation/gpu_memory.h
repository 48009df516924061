#pragma once
// What tests that run on the emulated GPU and on a real one alike ask about its memory.

#include <cstdint>

#if LACUNA_ON_GPU
#include "core/allocator.h"
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

}  // namespace lacuna::test
