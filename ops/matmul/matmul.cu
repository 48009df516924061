// Linear layers on a GPU. Products are cuBLASLt's (core/cuda/blas.h); what is ours is the sum over rows.

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

}  // namespace

void matrix_product(Stream stream, bool transpose_a, const Tensor& a, bool transpose_b, const Tensor& b, double beta,
                    const Tensor& c) {
  // An f32 weight beside 16-bit activations; c is then an activation too, or the f32 gradient of a weight.
  const DType dtype = a.dtype() == DType::f32 ? b.dtype() : a.dtype();
  matrix_product(stream, "matmul",
                 {transpose_a, transpose_b, as_activation(a, dtype), as_activation(b, dtype), beta, c});
}

void linear(Stream stream, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  matrix_product(stream, "linear",
                 {.transpose_b = true,
                  .a = x,
                  .b = as_activation(weight, x.dtype()),
                  .c = y,
                  .bias = bias.defined() ? as_activation(bias, y.dtype()) : Tensor()});
}

void sum_of_rows(Stream stream, const Tensor& x, const Tensor& sum) {
  dispatch_float(x.dtype(), "linear", [&]<class T>() {
    column_sum(stream, data<T>(x), x.dim(0), x.dim(1), data<float>(sum));
  });
}

}  // namespace lacuna::gpu
