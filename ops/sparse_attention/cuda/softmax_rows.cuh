#pragma once
// The softmax of one query by a warp, key by key, without tensor cores.

#include "core/cuda/kernel.h"

namespace lacuna::gpu {

inline constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ __forceinline__ float dot(const T* a, const T* b, int width) {
  float sum = 0.0f;
  for (int c = 0; c < width; ++c) sum += to_float(a[c]) * to_float(b[c]);
  return sum;
}

/// sum += weight * row, for this lane's numbers: every 32nd.
template <class T>
__device__ __forceinline__ void add_row(float* sum, float weight, const T* row, int width) {
  for (int c = threadIdx.x % kWarpSize; c < width; c += kWarpSize) sum[c] += weight * to_float(row[c]);
}

__device__ __forceinline__ void clear_row(float* sum, int width) {
  for (int c = threadIdx.x % kWarpSize; c < width; c += kWarpSize) sum[c] = 0.0f;
}

/// What a warp has seen of a row: o = sum_j exp(s_j - top) v_j, in shared memory, and this lane's share of
/// sum_j exp(s_j - top).
struct RowSoftmax {
  float* o;
  float top = -INFINITY, sum = 0.0f;

  /// Every lane brings the score of one key, -inf for none, and the row of its values at `v`; rows `stride` apart.
  template <class T>
  __device__ __forceinline__ void add(float s, int64_t row, const T* v, int64_t stride, int width) {
    const float largest = fmaxf(top, warp_max(s));
    if (largest == -INFINITY) return;
    const float shrink = expf(top - largest), weight = expf(s - largest);
    sum = sum * shrink + weight;
    top = largest;
    for (int c = threadIdx.x % kWarpSize; c < width; c += kWarpSize) o[c] *= shrink;
    for (int x = 0; x < kWarpSize; ++x) {
      const float weight_x = __shfl_sync(kAllLanes, weight, x);
      const int64_t row_x = __shfl_sync(kAllLanes, row, x);
      if (weight_x != 0.0f) add_row(o, weight_x, v + row_x * stride, width);
    }
  }
};

}  // namespace lacuna::gpu
