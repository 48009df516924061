#pragma once
// What the copy unit of sm_90 is told of a tensor; see hopper.h.

#include <cstdint>

namespace lacuna::gpu {

/// How 16-byte pieces of rows of 32, 64 or 128 bytes are exchanged in shared memory, so that reading a column of them
/// meets all banks: bits 4, 5, 6 of an address ^= bits 7, 8, 9 (of 128 bytes; the lower two or one of the others).
enum class Swizzle { none, bytes32, bytes64, bytes128 };

inline constexpr int kTensorRank = 5;

/// A tensor of 16-bit numbers in global memory, and the box of it that one copy moves; dimension 0 is dense.
struct TensorBox {
  const void* data;
  uint64_t sizes[kTensorRank];
  uint64_t strides[kTensorRank];  // bytes
  uint32_t box[kTensorRank];
  Swizzle swizzle;
};

}  // namespace lacuna::gpu
