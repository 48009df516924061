#pragma once
// Linear layers.

#include "autograd/variable.h"

namespace lacuna {

/// y = x W^T + bias, applied to every row of x.
///
///   x, y    [..., d_in], [..., d_out]   f64, f32, bf16 or f16
///   weight  [d_out, d_in]               same device and dtype as x; f32 for bf16 and f16
///   bias    [d_out]                     same; may be undefined: no bias
///
/// Beside bf16 and f16 weight and bias are rounded to the dtype of x, unless they keep a copy that is; products are
/// summed in f32 and y is rounded once, and so are the gradients of x; those of weight and bias stay f32. On the CPU
/// f32 runs on oneDNN with AVX-512, on tiles of our own below it, bf16 on oneDNN where the processor multiplies it, f64
/// on a plain blocked loop. The weight's gradient is added straight into its buffer when it has one. Throws Error when
/// shapes, dtypes or devices disagree.
Variable linear(const Variable& x, const Variable& weight, const Variable& bias = {});

/// The same for a few rows x [rows, d_in], without gradients: a row has the same bits however many rows there are,
/// where matrix products round differently by shape. f32 or f64; f32 on a GPU.
Tensor linear_rows(const Tensor& x, const Variable& weight, const Variable& bias = {});

/// c = a b for two matrices: a [m, k], b [k, n], c [m, n], all of one dtype. Errors as in linear.
Variable matmul(const Variable& a, const Variable& b);

/// C = alpha op(A) op(B) + beta C on row-major matrices, op(X) = X or X^T.
/// op(A) is [m, k], op(B) [k, n], C [m, n]; lda, ldb, ldc are the distances between rows as stored.
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc);
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
          int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc);

}  // namespace lacuna
