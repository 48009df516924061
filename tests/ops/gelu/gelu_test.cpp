#include "ops/gelu/gelu.h"

#include "autograd/gradcheck.h"
#include "tests/support/expect_error.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

Variable run(const std::vector<Variable>& in) { return gelu(in[0]); }

template <class T>
std::vector<Tensor> reference(const Tensor& x, const Tensor& dy) {
  std::vector<T> y, dx;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const T xi = x.data<T>()[i], s = T{1} / (T{1} + std::exp(-T(1.702) * xi));
    y.push_back(xi * s);
    dx.push_back(dy.data<T>()[i] * (s + T(1.702) * xi * s * (T{1} - s)));
  }
  return {from_vector(y, x.shape()), from_vector(dx, x.shape())};
}

}  // namespace

TEST_CASE("gelu: f64 is the formula") {
  for (const Shape& shape : kShapes) {
    const Tensor x = random_tensor(shape, DType::f64, 1, 3.0), dy = random_tensor(shape, DType::f64, 2);
    expect_close(value_and_gradients(run, {x}, dy), reference<double>(x, dy), 1e-14);
  }
}

TEST_CASE("gelu: f32 is as accurate as the plain loop on every instruction set") {
  for_each_simd_target([] {
    for (const Shape& shape : kShapes) {
      const Tensor x = random_tensor(shape, DType::f32, 1, 3.0), dy = random_tensor(shape, DType::f32, 2);
      const std::vector<Tensor> fast = value_and_gradients(run, {x}, dy), plain = reference<float>(x, dy),
                                exact = reference<double>(to_dtype(x, DType::f64), to_dtype(dy, DType::f64));
      expect_as_accurate({fast[0]}, {plain[0]}, {exact[0]});
      expect_as_accurate({fast[1]}, {plain[1]}, {exact[1]}, max_abs(dy));  // its two terms cancel
    }
  });
}

TEST_CASE("gelu: large arguments saturate, NaN stays NaN") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for_each_simd_target([nan] {
    const Tensor x = from_vector<float>({-1e30f, -200.0f, 0.0f, 200.0f, 1e30f, nan}, {6});
    const std::vector<Tensor> r = value_and_gradients(run, {x}, full({6}, DType::f32, 1.0));
    const std::vector<float> y = to_vector<float>(r[0]), dx = to_vector<float>(r[1]);
    for (int i : {0, 1, 2}) CHECK(y[static_cast<size_t>(i)] == 0.0f);
    CHECK(y[3] == 200.0f);
    CHECK(y[4] == 1e30f);
    CHECK(std::isnan(y[5]));
    CHECK(dx[0] == 0.0f);
    CHECK(dx[1] == 0.0f);
    CHECK(dx[2] == 0.5f);
    CHECK(dx[3] == 1.0f);
    CHECK(dx[4] == 1.0f);
    CHECK(std::isnan(dx[5]));
  });
}

TEST_CASE("gelu: gradients match finite differences") {
  const Variable x = random_leaf({3, 7}, 1);
  expect_gradients({x}, [&] { return gelu(x); });
}

TEST_CASE("gelu: refuses other dtypes") {
  CHECK(message_of([] { gelu(Variable(zeros({2}, DType::i32))); }) == "gelu: dtype must be f32 or f64, got i32");
}

}  // namespace lacuna::test
