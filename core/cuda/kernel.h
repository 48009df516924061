#pragma once
// What the kernels of the operations share. For kernel sources alone.

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/rng.h"
#include "core/tensor.h"
//
#include "core/cuda/gpu.h"

namespace lacuna::gpu {

inline constexpr int kWarpSize = 32;
inline constexpr int kBlockThreads = 256;  // where nothing speaks for another size
inline constexpr int kRowWarps = 4;        // of a block whose warps have a row each

// --- Host: tensors as the device sees them

template <class T>
inline constexpr DType device_dtype = dtype_of<T>;
template <>
inline constexpr DType device_dtype<__nv_bfloat16> = DType::bf16;
template <>
inline constexpr DType device_dtype<__half> = DType::f16;

/// The first element, as a T of the device (float, double, __nv_bfloat16, __half or an integer).
template <class T>
T* data(const Tensor& t) {
  check(t.dtype() == device_dtype<T>, "Tensor: asked for ", device_dtype<T>, " elements of a tensor of ", t.dtype());
  return reinterpret_cast<T*>(t.raw());
}

/// Calls `body.template operator()<T>()` with T the device's element type. Throws Error unless it is f32, bf16 or f16.
template <class Body>
void dispatch_float(DType dtype, const char* op, const Body& body) {
  switch (dtype) {
    case DType::f32: return body.template operator()<float>();
    case DType::bf16: return body.template operator()<__nv_bfloat16>();
    case DType::f16: return body.template operator()<__half>();
    default: fail(op, ": on a GPU dtype must be f32, bf16 or f16, got ", dtype);
  }
}

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The x extent of a grid; throws Error when CUDA has no such grid.
inline unsigned grid_of(int64_t blocks, const char* op) {
  check(blocks < int64_t{1} << 31, op, ": too large for one launch: ", blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

/// The same for y, of which CUDA has less.
inline unsigned grid_y_of(int64_t blocks, const char* op) {
  check(blocks < 65536, op, ": too many rows for one launch: ", blocks, " blocks of them");
  return static_cast<unsigned>(blocks);
}

// --- Device: numbers

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

/// x rounded to nearest even.
template <class T>
__device__ inline T round_to(float x) {
  if constexpr (device_dtype<T> == DType::bf16)
    return __float2bfloat16_rn(x);
  else if constexpr (device_dtype<T> == DType::f16)
    return __float2half_rn(x);
  else
    return static_cast<T>(x);
}

/// Eight neighbouring elements, as much as a thread moves at once: 16 bytes of a 16-bit type, twice that in f32.
template <class T>
struct alignas(16) Eight {
  T x[8];
};
inline constexpr int kEight = 8;

/// x[0, 8) in f32; elements from `count` on are 0 and not read. `aligned`: x is at a multiple of 16 bytes.
template <class T>
__device__ inline void load_eight(const T* x, int64_t count, bool aligned, float (&values)[kEight]) {
  if (aligned && count >= kEight) {
    const Eight<T> eight = *reinterpret_cast<const Eight<T>*>(x);
    for (int i = 0; i < kEight; ++i) values[i] = to_float(eight.x[i]);
  } else {
    for (int i = 0; i < kEight; ++i) values[i] = i < count ? to_float(x[i]) : 0.0f;
  }
}

template <class T>
__device__ inline void store_eight(const float (&values)[kEight], int64_t count, bool aligned, T* x) {
  if (aligned && count >= kEight) {
    Eight<T> eight;
    for (int i = 0; i < kEight; ++i) eight.x[i] = round_to<T>(values[i]);
    *reinterpret_cast<Eight<T>*>(x) = eight;
  } else {
    for (int i = 0; i < kEight; ++i)
      if (i < count) x[i] = round_to<T>(values[i]);
  }
}

/// The sum over the 32 lanes of a warp, in one fixed order; every lane gets it.
template <class T>
__device__ inline T warp_sum(T x) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ inline float warp_max(float x) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// --- Elementwise operations

inline constexpr int kElementwiseThreads = 256;

// y[i] = f(a[i], b[i]) in f32; y may be a or b. An F with kInputs = 1 does not read b.
//   thread     eight neighbouring elements
//   precision  loads T, computes f32, rounds once on store
//   requires   nothing: without 16-byte alignment elements go one by one
template <class T, class F>
__global__ void elementwise_kernel(F f, int64_t count, bool aligned, const T* a, const T* b, T* y) {
  const int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kEight;
  if (first >= count) return;
  float left[kEight], right[kEight] = {}, result[kEight];
  load_eight(a + first, count - first, aligned, left);
  if constexpr (F::kInputs == 2) load_eight(b + first, count - first, aligned, right);
  for (int i = 0; i < kEight; ++i) result[i] = f(left[i], right[i]);
  store_eight(result, count - first, aligned, y + first);
}

/// y = f(a, b) for tensors of one shape and of dtype T.
template <class T, class F>
void elementwise(Stream stream, const char* op, F f, const Tensor& a, const Tensor& b, const Tensor& y) {
  if (y.numel() == 0) return;
  const bool aligned = is_aligned(a.raw(), 16) && is_aligned(b.raw(), 16) && is_aligned(y.raw(), 16);
  const int64_t blocks = ceil_div(y.numel(), kElementwiseThreads * kEight);
  launch(stream, elementwise_kernel<T, F>, dim3(grid_of(blocks, op)), dim3(kElementwiseThreads), 0, f, y.numel(),
         aligned, data<T>(a), data<T>(b), data<T>(y));
}

}  // namespace lacuna::gpu
