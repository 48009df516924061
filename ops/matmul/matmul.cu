// Linear layers on a GPU. Products are cuBLASLt's (core/cuda/blas.h), and with that of a weight's gradient the gradient
// of the bias; adding the bias, and the sum over rows, are ours where the library has no such product.

#include <utility>

#include "core/cuda/blas.h"
#include "core/cuda/kernel.h"
#include "ops/column_sum.cuh"
#include "ops/matmul/matmul_kernels.h"

namespace lacuna::gpu {
namespace {

// `parameter` in the dtype of the activations, which the product needs.
Tensor as_activation(const Tensor& parameter, DType dtype) {
  const MemoryScope scope(MemoryCategory::workspace);
  return to_dtype(parameter, dtype);
}

constexpr int kWarps = 4, kRows = 8;  // of a block
constexpr int64_t kManyRows = 64;     // which keep a GPU busy with a quarter of the blocks

// y = x weight^T + bias for a few rows: the weights are read once for kRows of them.
//   grid       a block for kWarps times kOutputs outputs (x) of kRows rows (y)
//   lane       every 32nd product of kOutputs outputs; more of them read x less often, fewer keep more blocks busy
//   precision  f32; the order of a sum is that of d_in alone
template <int kOutputs>
__global__ void linear_rows_kernel(const float* x, const float* weight, const float* bias, int64_t rows, int64_t d_in,
                                   int64_t d_out, float* y) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t output = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize) * kOutputs;
  const int64_t first = int64_t{blockIdx.y} * kRows;
  if (output >= d_out) return;
  const float *x_rows[kRows], *w_rows[kOutputs];  // those past the end are the last: read, and not written
#pragma unroll
  for (int r = 0; r < kRows; ++r) x_rows[r] = x + (first + r < rows ? first + r : rows - 1) * d_in;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) w_rows[o] = weight + (output + o < d_out ? output + o : d_out - 1) * d_in;
  float sum[kOutputs][kRows] = {};
  for (int64_t c = lane; c < d_in; c += kWarpSize) {
    float w[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) w[o] = w_rows[o][c];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float x_r = x_rows[r][c];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) sum[o][r] += w[o] * x_r;
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o)
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float total = warp_sum(sum[o][r]);
      if (lane == 0 && output + o < d_out && first + r < rows)
        y[(first + r) * d_out + output + o] = total + (bias != nullptr ? bias[output + o] : 0.0f);
    }
}

// y[r, c] += bias[c], of rows of d_out.   thread: one element
template <class T>
__global__ void add_bias_kernel(T* y, const T* bias, int64_t count, int64_t d_out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) y[i] = round_to<T>(to_float(y[i]) + to_float(bias[i % d_out]));
}

}  // namespace

void linear_rows(Stream stream, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  const int64_t rows = x.dim(0), d_out = y.dim(1);
  if (y.numel() == 0) return;
  const auto run = [&]<int kOutputs>() {
    const dim3 grid(grid_of(ceil_div(d_out, kWarps * kOutputs), "linear_rows"),
                    grid_y_of(ceil_div(rows, kRows), "linear_rows"));
    launch(stream, linear_rows_kernel<kOutputs>, grid, dim3(kWarps * kWarpSize), 0, data<float>(x), data<float>(weight),
           bias.defined() ? data<float>(bias) : nullptr, rows, x.dim(1), d_out, data<float>(y));
  };
  if (rows >= kManyRows)
    run.template operator()<4>();
  else
    run.template operator()<1>();
}

void matrix_product(Stream stream, bool transpose_a, const Tensor& a, bool transpose_b, const Tensor& b, double beta,
                    const Tensor& c) {
  // An f32 weight beside 16-bit activations; c is then an activation too, or the f32 gradient of a weight.
  const DType dtype = a.dtype() == DType::f32 ? b.dtype() : a.dtype();
  matrix_product(stream, "matmul",
                 {transpose_a, transpose_b, as_activation(a, dtype), as_activation(b, dtype), beta, c});
}

void linear(Stream stream, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  MatrixProduct product{.transpose_b = true,
                        .a = x,
                        .b = as_activation(weight, x.dtype()),
                        .c = y,
                        .bias = bias.defined() ? as_activation(bias, y.dtype()) : Tensor()};
  if (matrix_product(stream, "linear", product)) return;
  const Tensor row = std::exchange(product.bias, Tensor());
  matrix_product(stream, "linear", product);
  dispatch_float(y.dtype(), "linear", [&]<class T>() {
    launch(stream, add_bias_kernel<T>, dim3(grid_of(ceil_div(y.numel(), kBlockThreads), "linear")), dim3(kBlockThreads),
           0, data<T>(y), data<T>(row), y.numel(), y.dim(1));
  });
}

void linear_gradients(Stream stream, const Tensor& dy, const Tensor& x, double beta, const Tensor& dweight,
                      const Tensor& dbias) {
  if (dweight.defined()) {
    MatrixProduct product{.transpose_a = true, .a = dy, .b = x, .beta = beta, .c = dweight, .sums = dbias};
    if (matrix_product(stream, "linear", product)) return;
    product.sums = {};
    matrix_product(stream, "linear", product);
  }
  if (dbias.defined())
    dispatch_float(dy.dtype(), "linear",
                   [&]<class T>() { column_sum(stream, data<T>(dy), dy.dim(0), dy.dim(1), data<float>(dbias)); });
}

}  // namespace lacuna::gpu
