#include "ops/matmul/matmul.h"

#include <vector>

#include "core/dispatch.h"
#include "ops/matmul/matmul_kernels.h"

namespace lacuna {
namespace {

// op(a) op(b) in a new [m, n] matrix of `dtype`.
Tensor product(bool transpose_a, const Tensor& a, bool transpose_b, const Tensor& b, int64_t m, int64_t n,
               DType dtype) {
  Tensor c = empty({m, n}, dtype, a.device());
  LACUNA_DISPATCH(a.device(), matrix_product, transpose_a, a, transpose_b, b, 0.0, c);
  return c;
}

// op(a) op(b) as the gradient of input `i`, a matrix [m, n] of `dtype`: added to the input's buffer if it has one, else
// returned.
Tensor product_as_gradient(const Needs& needs, size_t i, bool transpose_a, const Tensor& a, bool transpose_b,
                           const Tensor& b, int64_t m, int64_t n, DType dtype) {
  if (!needs.wants(i)) return {};
  const Tensor accumulator = needs.accumulator(i);
  if (!accumulator.defined()) return product(transpose_a, a, transpose_b, b, m, n, dtype);
  LACUNA_DISPATCH(a.device(), matrix_product, transpose_a, a, transpose_b, b, 1.0, accumulator);
  return {};
}

}  // namespace

Variable linear(const Variable& x, const Variable& weight, const Variable& bias) {
  check_parameters("linear", x, {weight, bias});
  check(weight.shape().rank() == 2, "linear: weight must be [d_out, d_in], got ", weight.shape());
  const int64_t d_out = weight.dim(0), d_in = weight.dim(1);
  check(x.shape().rank() >= 1 && x.dim(-1) == d_in, "linear: x must be [..., ", d_in, "] for weight ", weight.shape(),
        ", got ", x.shape());
  check(!bias.defined() || bias.shape() == Shape{d_out}, "linear: bias must be ", Shape{d_out}, " for weight ",
        weight.shape(), ", got ", bias.defined() ? bias.shape() : Shape{});

  int64_t rows = 1;
  std::vector<int64_t> y_dims(x.shape().dims().begin(), x.shape().dims().end());
  y_dims.back() = d_out;
  for (size_t i = 0; i + 1 < y_dims.size(); ++i) rows *= y_dims[i];

  const Tensor x_rows = x.value().reshape({rows, d_in}), w = weight.value_for(x.dtype());
  Tensor y = empty({rows, d_out}, x.dtype(), x.device());
  LACUNA_DISPATCH(x.device(), linear, x_rows, w, bias.defined() ? bias.value_for(x.dtype()) : Tensor(), y);

  auto backward = [x_rows, w, x_shape = x.shape(), dtype = weight.dtype()](const Tensor& dy, const Needs& needs) {
    const int64_t rows = x_rows.dim(0), d_out = w.dim(0), d_in = w.dim(1);
    const Tensor dy_rows = dy.reshape({rows, d_out});
    Grads grads(3);
    if (needs.wants(0)) grads[0] = product(false, dy_rows, false, w, rows, d_in, dy.dtype()).reshape(x_shape);
    if (needs.wants(2)) grads[2] = empty({d_out}, dtype, dy.device());
    const Tensor buffer = needs.accumulator(1);
    if (needs.wants(1) && !buffer.defined()) grads[1] = empty({d_out, d_in}, dtype, dy.device());
    LACUNA_DISPATCH(dy.device(), linear_gradients, dy_rows, x_rows, buffer.defined() ? 1.0 : 0.0,
                    buffer.defined() ? buffer : grads[1], grads[2]);
    return grads;
  };
  return record("linear", y.reshape(Shape(y_dims)), {x, weight, bias}, backward);
}

Tensor linear_rows(const Tensor& x, const Variable& weight, const Variable& bias) {
  check(x.rank() == 2 && x.dim(1) == weight.dim(1), "linear_rows: x must be [rows, ", weight.dim(1), "], got ",
        x.shape());
  check_same_dtype_and_device("linear_rows", {Variable(x), weight, bias});
  const Tensor y = empty({x.dim(0), weight.dim(0)}, x.dtype(), x.device());
  LACUNA_DISPATCH(x.device(), linear_rows, x, weight.value(), bias.defined() ? bias.value() : Tensor(), y);
  return y;
}

Variable matmul(const Variable& a, const Variable& b) {
  check_same_dtype_and_device("matmul", {a, b});
  check(a.shape().rank() == 2 && b.shape().rank() == 2 && a.dim(1) == b.dim(0),
        "matmul: a and b must be [m, k] and [k, n], got ", a.shape(), " and ", b.shape());

  const Tensor c = product(false, a.value(), false, b.value(), a.dim(0), b.dim(1), a.dtype());
  auto backward = [a = a.value(), b = b.value()](const Tensor& dc, const Needs& needs) {
    return Grads{product_as_gradient(needs, 0, false, dc, true, b, a.dim(0), a.dim(1), dc.dtype()),
                 product_as_gradient(needs, 1, true, a, false, dc, b.dim(0), b.dim(1), dc.dtype())};
  };
  return record("matmul", c, {a, b}, backward);
}

}  // namespace lacuna
