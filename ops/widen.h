#pragma once
// bf16 and f16 on the CPU: kernels compute in f32 on widened copies, and what they write is rounded once.

#include <algorithm>
#include <tuple>

#include "core/tensor.h"

namespace lacuna::cpu {

/// compute(x, count, y) on f32 copies of elements of T (bf16 or f16), a few that stay in the cache at a time; `xs` are
/// the inputs, all of `count` elements.
template <class T, class Compute, class... Inputs>
void compute_widened(int64_t count, T* y, const Compute& compute, const Inputs*... xs) {
  constexpr int64_t kAtOnce = 2048;
  float wide_y[kAtOnce], wide_xs[sizeof...(xs)][kAtOnce];
  for (int64_t begin = 0; begin < count; begin += kAtOnce) {
    const int64_t n = std::min(kAtOnce, count - begin);
    int64_t input = 0;
    const auto widen = [&](const T* x) {
      float* const wide = wide_xs[input++];
      for (int64_t i = 0; i < n; ++i) wide[i] = x[begin + i];
      return static_cast<const float*>(wide);
    };
    const std::tuple wide{widen(xs)...};  // braces: in order
    std::apply([&](const auto*... inputs) { compute(inputs..., n, wide_y); }, wide);
    for (int64_t i = 0; i < n; ++i) y[begin + i] = T(wide_y[i]);
  }
}

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
