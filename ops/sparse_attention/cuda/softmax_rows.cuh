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

/// sum += weight * row of `x`, rows `stride` apart, for those that the 32 lanes bring, in their order, and for this
/// lane's numbers: every 32nd. Rows of weight 0 add nothing, whatever they hold.
template <class T>
__device__ __forceinline__ void add_rows(float* sum, float weight, const T* x, int64_t row, int64_t stride, int width) {
  constexpr int kAtOnce = 8;  // so many loads are under way together
  for (int first = 0; first < kWarpSize; first += kAtOnce) {
    float weights[kAtOnce];
    const T* rows[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      weights[i] = __shfl_sync(kAllLanes, weight, first + i);
      rows[i] = x + __shfl_sync(kAllLanes, row, first + i) * stride;
    }
    for (int c = threadIdx.x % kWarpSize; c < width; c += kWarpSize) {
      float values[kAtOnce], total = sum[c];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) values[i] = to_float(rows[i][c]);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) total += weights[i] * (weights[i] != 0.0f ? values[i] : 0.0f);
      sum[c] = total;
    }
  }
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
    add_rows(o, weight, v, row, stride, width);
  }
};

}  // namespace lacuna::gpu
