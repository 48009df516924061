#pragma once
#include "core/dispatch.h"
#include "core/tensor.h"

namespace lacuna {

/// c = op(a) op(b) + beta c for matrices, op(x) = x or its transpose.
LACUNA_KERNEL(void matrix_product(Stream stream, bool transpose_a, const Tensor& a, bool transpose_b, const Tensor& b,
                                  double beta, const Tensor& c))

/// y [rows, d_out] = x weight^T, plus bias in every row if it is defined; x [rows, d_in], weight [d_out, d_in].
LACUNA_KERNEL(void linear(Stream stream, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y))

/// The same, of bits that depend on the row alone.
LACUNA_KERNEL(void linear_rows(Stream stream, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const Tensor& y))

/// The gradients of a linear layer's parameters: dweight = dy^T x + beta dweight, dbias = the sum of the rows of dy.
/// dy [rows, d_out], x [rows, d_in], dweight [d_out, d_in], dbias [d_out]; dweight or dbias may be undefined: left out.
LACUNA_KERNEL(void linear_gradients(Stream stream, const Tensor& dy, const Tensor& x, double beta,
                                    const Tensor& dweight, const Tensor& dbias))

}  // namespace lacuna
