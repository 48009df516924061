#pragma once
// Sums of all elements of a buffer on a GPU, in f64 and in one fixed order.

#include "core/cuda/kernel.h"

namespace lacuna::gpu {

inline constexpr int kReduceThreads = 256;
inline constexpr int64_t kReducePiece = 32768;  // elements that one block sums

struct Identity {
  template <class T>
  __device__ double operator()(T x) const {
    return static_cast<double>(x);
  }
};

struct Square {
  template <class T>
  __device__ double operator()(T x) const {
    return static_cast<double>(x) * static_cast<double>(x);
  }
};

/// The sum over the threads of a block of kReduceThreads, in one fixed order; thread 0 gets it.
__device__ inline double block_sum(double x) {
  LACUNA_SHARED(double, of_warp, [kReduceThreads / kWarpSize]);
  x = warp_sum(x);
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < kReduceThreads / kWarpSize; ++warp) total += of_warp[warp];
  return total;
}

// sum[b] = sum of f(x[i]) over i in [b piece, (b + 1) piece).
//   grid    a block for each piece
//   thread  every kReduceThreads-th element, then a tree over the threads
template <class F, class T>
__global__ void reduce_kernel(const T* x, int64_t count, int64_t piece, double* sum) {
  const int64_t begin = int64_t{blockIdx.x} * piece, end = begin + piece < count ? begin + piece : count;
  double mine = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kReduceThreads) mine += F{}(x[i]);
  const double total = block_sum(mine);
  if (threadIdx.x == 0) sum[blockIdx.x] = total;
}

/// *sum = sum of F{}(x[i]) over i < count.
template <class F, class T>
void reduce_sum(Stream stream, const char* op, const T* x, int64_t count, double* sum) {
  const int64_t pieces = std::max<int64_t>(1, ceil_div(count, kReducePiece));
  const MemoryScope scope(MemoryCategory::workspace);
  const Tensor partial = empty({pieces}, DType::f64, stream.device);
  launch(stream, reduce_kernel<F, T>, dim3(grid_of(pieces, op)), dim3(kReduceThreads), 0, x, count, kReducePiece,
         data<double>(partial));
  launch(stream, reduce_kernel<Identity, double>, dim3(1), dim3(kReduceThreads), 0, data<double>(partial), pieces,
         pieces, sum);
}

}  // namespace lacuna::gpu
