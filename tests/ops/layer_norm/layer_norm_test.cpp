#include "ops/layer_norm/layer_norm.h"

#include "autograd/gradcheck.h"
#include "tests/support/expect_error.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

constexpr float kEps = 1e-5f;

Variable run(const std::vector<Variable>& in) { return layer_norm(in[0], in[1], in[2], kEps); }

std::vector<Tensor> random_inputs(const Shape& shape, DType dtype, double shift = 0.0) {
  const Shape d_model{shape.dim(-1)};
  return {random_tensor(shape, dtype, 1, 2.0, shift), random_tensor(d_model, dtype, 2),
          random_tensor(d_model, dtype, 3)};
}

template <class T>
std::vector<Tensor> reference(const std::vector<Tensor>& in, const Tensor& dy_tensor) {
  const int64_t d = in[1].numel(), rows = in[0].numel() / d;
  const T *x = in[0].data<T>(), *gain = in[1].data<T>(), *bias = in[2].data<T>(), *dy = dy_tensor.data<T>();
  std::vector<Tensor> out{empty_like(in[0]), empty_like(in[0]), zeros_like(in[1]), zeros_like(in[2])};
  T *y = out[0].data<T>(), *dx = out[1].data<T>(), *dgain = out[2].data<T>(), *dbias = out[3].data<T>();
  for (int64_t r = 0; r < rows; ++r, x += d, dy += d, y += d, dx += d) {
    T mean = 0, variance = 0, mean_g = 0, mean_g_xhat = 0;
    for (int64_t j = 0; j < d; ++j) mean += x[j] / T(d);
    for (int64_t j = 0; j < d; ++j) variance += (x[j] - mean) * (x[j] - mean) / T(d);
    const T std = std::sqrt(variance + T(kEps));
    for (int64_t j = 0; j < d; ++j) {
      const T xhat = (x[j] - mean) / std;
      y[j] = gain[j] * xhat + bias[j];
      mean_g += gain[j] * dy[j] / T(d);
      mean_g_xhat += gain[j] * dy[j] * xhat / T(d);
      dgain[j] += dy[j] * xhat;
      dbias[j] += dy[j];
    }
    for (int64_t j = 0; j < d; ++j) dx[j] = (gain[j] * dy[j] - mean_g - (x[j] - mean) / std * mean_g_xhat) / std;
  }
  return out;
}

}  // namespace

TEST_CASE("layer_norm: f64 is the formula") {
  for (const Shape& shape : kShapes) {
    const std::vector<Tensor> in = random_inputs(shape, DType::f64);
    const Tensor dy = random_tensor(shape, DType::f64, 4);
    expect_close(value_and_gradients(run, in, dy), reference<double>(in, dy), 1e-12);
  }
}

TEST_CASE("layer_norm: f32 is as accurate as the plain loop on every instruction set") {
  for_each_simd_target([] {
    for (const double shift : {0.0, 100.0}) {  // a mean far larger than the spread must not cancel
      for (const Shape& shape : kShapes) {
        if (shape.dim(-1) == 1) continue;  // xhat is 0 / sqrt(eps): every error is a rounding error of nothing
        const std::vector<Tensor> in = random_inputs(shape, DType::f32, shift);
        const Tensor dy = random_tensor(shape, DType::f32, 4);
        expect_as_accurate(value_and_gradients(run, in, dy), reference<float>(in, dy),
                           reference<double>(to_dtype(in, DType::f64), to_dtype(dy, DType::f64)),
                           /*intermediate=*/shift);  // the mean
      }
    }
  });
}

TEST_CASE("layer_norm: a constant row gives the bias, in f32 and f64") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Variable x(full({2, 35}, dtype, 3.0)), gain(random_tensor({35}, dtype, 1)),
        bias(random_tensor({35}, dtype, 2));
    const Tensor y = layer_norm(x, gain, bias).value();
    CHECK(same_bits(y.slice(0, 1).reshape({35}), bias.value()));
    CHECK(same_bits(y.slice(1, 2).reshape({35}), bias.value()));
  }
}

TEST_CASE("layer_norm: gradients match finite differences") {
  const Variable x = random_leaf({2, 3, 7}, 1), gain = random_leaf({7}, 2), bias = random_leaf({7}, 3);
  expect_gradients({x, gain, bias}, [&] { return layer_norm(x, gain, bias); });
}

TEST_CASE("layer_norm: the same bits on any number of threads") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const std::vector<Tensor> in = random_inputs({1001, 48}, dtype);
    const Tensor dy = random_tensor({1001, 48}, dtype, 4);
    expect_same_bits_on_any_threads([&] { return value_and_gradients(run, in, dy); });
  }
}

TEST_CASE("layer_norm: names what does not fit") {
  const Variable x(zeros({2, 4}, DType::f32)), four(zeros({4}, DType::f32)), three(zeros({3}, DType::f32));
  CHECK(message_of([&] { layer_norm(x, four, three); }) ==
        "layer_norm: gain and bias must be [4], the last dimension of x, got [3]");
  CHECK(message_of([&] { layer_norm(x, four, Variable(zeros({4}, DType::f64))); }) ==
        "layer_norm: parameters must be f32 on cpu for x of f32, got f64 on cpu");
  CHECK(message_of([&] {
          layer_norm(Variable(zeros({2, 0}, DType::f32)), four, four);
        }) == "layer_norm: x must have a last dimension of at least 1, got [2, 0]");
}

}  // namespace lacuna::test
