#pragma once
// bf16 and f16 on the CPU: kernels compute in f32 on widened copies, and what they write is rounded once.

#include "core/tensor.h"

namespace lacuna::cpu {

/// x in f32 if it is bf16 or f16, else x itself.
inline Tensor widened(const Tensor& x) {
  const MemoryScope scope(MemoryCategory::workspace);
  return to_dtype(x, accumulation_dtype(x.dtype()));
}

/// Calls `compute` with an f32 tensor to fill, and rounds that into y, which is bf16 or f16.
template <class Compute>
void write_rounded(const Tensor& y, const Compute& compute) {
  const MemoryScope scope(MemoryCategory::workspace);
  const Tensor wide = empty(y.shape(), DType::f32);
  compute(wide);
  copy(wide, y);
}

}  // namespace lacuna::cpu
