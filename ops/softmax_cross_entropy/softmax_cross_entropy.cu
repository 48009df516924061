// Row by row: m = max z, s = sum exp(z - m), lse = m + log s, loss = (m - z[target]) + log s.

#include "core/cuda/kernel.h"
#include "core/cuda/reduce.cuh"
#include "ops/softmax_cross_entropy/softmax_cross_entropy_kernels.h"

namespace lacuna::gpu {
namespace {

// Forward. z [rows, n_vocab].
//   grid       one warp for a row, kRowWarps rows a block
//   lane       columns lane, lane + 32, ...; the second pass finds them in L1
//   precision  exponentials and their sum f32, logarithm and loss f64
template <class T>
__global__ void cross_entropy_forward_kernel(const T* z, const uint8_t* target, int64_t rows, int n_vocab, float* lse,
                                             double* row_loss) {
  const int64_t row = int64_t{blockIdx.x} * kRowWarps + threadIdx.y;
  if (row >= rows) return;  // leaves by whole warps
  z += row * n_vocab;
  float largest = -INFINITY;
  for (int j = threadIdx.x; j < n_vocab; j += kWarpSize) largest = fmaxf(largest, to_float(z[j]));
  largest = warp_max(largest);
  float sum = 0.0f;
  for (int j = threadIdx.x; j < n_vocab; j += kWarpSize) sum += expf(to_float(z[j]) - largest);
  sum = warp_sum(sum);
  if (threadIdx.x != 0) return;
  const double log_sum = log(static_cast<double>(sum)), m = largest;
  lse[row] = static_cast<float>(m + log_sum);
  row_loss[row] = target[row] < n_vocab ? (m - to_float(z[target[row]])) + log_sum : NAN;
}

// Backward: dz = (exp(z - lse) - onehot(target)) dloss / rows. Mapping as forward; dz may be z.
template <class T>
__global__ void cross_entropy_backward_kernel(const float* dloss, const T* z, const uint8_t* target, const float* lse,
                                              int64_t rows, int n_vocab, T* dz) {
  const int64_t row = int64_t{blockIdx.x} * kRowWarps + threadIdx.y;
  if (row >= rows) return;
  const float scale = static_cast<float>(static_cast<double>(*dloss) / static_cast<double>(rows));
  for (int j = threadIdx.x; j < n_vocab; j += kWarpSize) {
    const float p = expf(to_float(z[row * n_vocab + j]) - lse[row]);
    dz[row * n_vocab + j] = round_to<T>(scale * (j == target[row] ? p - 1.0f : p));
  }
}

// *quotient = *x / divisor, by one thread
__global__ void divide_kernel(const double* x, double divisor, float* quotient) {
  *quotient = static_cast<float>(*x / divisor);
}

dim3 grid(int64_t rows) { return dim3(grid_of(ceil_div(rows, kRowWarps), "softmax_cross_entropy")); }

}  // namespace

void softmax_cross_entropy_forward(Stream stream, const Tensor& logits, const Tensor& targets, const Tensor& lse,
                                   const Tensor& row_loss) {
  dispatch_float(logits.dtype(), "softmax_cross_entropy", [&]<class T>() {
    const int64_t rows = targets.numel();
    if (rows == 0) return;
    launch(stream, cross_entropy_forward_kernel<T>, grid(rows), dim3(kWarpSize, kRowWarps), 0, data<T>(logits),
           data<uint8_t>(targets), rows, static_cast<int>(logits.dim(-1)), data<float>(lse), data<double>(row_loss));
  });
}

void softmax_cross_entropy_backward(Stream stream, const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                                    const Tensor& lse, const Tensor& dlogits) {
  dispatch_float(logits.dtype(), "softmax_cross_entropy", [&]<class T>() {
    const int64_t rows = targets.numel();
    if (rows == 0) return;
    launch(stream, cross_entropy_backward_kernel<T>, grid(rows), dim3(kWarpSize, kRowWarps), 0, data<float>(dloss),
           data<T>(logits), data<uint8_t>(targets), data<float>(lse), rows, static_cast<int>(logits.dim(-1)),
           data<T>(dlogits));
  });
}

void mean_of_rows(Stream stream, const Tensor& row_loss, const Tensor& mean) {
  const int64_t rows = row_loss.numel();
  const Tensor sum = empty({1}, DType::f64, stream.device);
  reduce_sum<Identity>(stream, "softmax_cross_entropy", data<double>(row_loss), rows, data<double>(sum));
  launch(stream, divide_kernel, dim3(1), dim3(1), 0, data<double>(sum), static_cast<double>(rows), data<float>(mean));
}

}  // namespace lacuna::gpu
