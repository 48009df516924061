#include "ops/matmul/matmul.h"

#include <array>
#include <cmath>
#include <cstring>

#include "autograd/gradcheck.h"
#include "autograd/parameters.h"
#include "ops/matmul/gemm_cpu.h"
#include "tests/support/expect_error.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

/// C = alpha op(A) op(B) + beta C, one element after the other.
template <class T>
void reference_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda, const T* b,
                    int64_t ldb, T beta, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      T sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += (ta ? a[l * lda + i] : a[i * lda + l]) * (tb ? b[j * ldb + l] : b[l * ldb + j]);
      c[i * ldc + j] = alpha * sum + (beta == T{0} ? T{0} : beta * c[i * ldc + j]);
    }
}

Variable run_linear(const std::vector<Variable>& in) { return linear(in[0], in[1], in[2]); }

template <class T>
std::vector<Tensor> reference_linear(const std::vector<Tensor>& in, const Tensor& dy) {
  const int64_t rows = in[0].dim(0), d_in = in[0].dim(1), d_out = in[2].numel();
  std::vector<Tensor> out{empty_like(dy), empty_like(in[0]), empty_like(in[1]), zeros_like(in[2])};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < d_out; ++j) {
      out[0].data<T>()[r * d_out + j] = in[2].data<T>()[j];
      out[3].data<T>()[j] += dy.data<T>()[r * d_out + j];
    }
  reference_gemm<T>(false, true, rows, d_out, d_in, 1, in[0].data<T>(), d_in, in[1].data<T>(), d_in, 1,
                    out[0].data<T>(), d_out);
  reference_gemm<T>(false, false, rows, d_in, d_out, 1, dy.data<T>(), d_out, in[1].data<T>(), d_in, 0, out[1].data<T>(),
                    d_in);
  reference_gemm<T>(true, false, d_out, d_in, rows, 1, dy.data<T>(), d_out, in[0].data<T>(), d_in, 0, out[2].data<T>(),
                    d_in);
  return out;
}

std::vector<Tensor> random_inputs(int64_t rows, int64_t d_in, int64_t d_out, DType dtype) {
  return {random_tensor({rows, d_in}, dtype, 1), random_tensor({d_out, d_in}, dtype, 2),
          random_tensor({d_out}, dtype, 3)};
}

}  // namespace

TEST_CASE_TEMPLATE("gemm: every transposition, distance between rows, alpha and beta", T, float, double) {
  const double rounding = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const std::vector<std::array<int64_t, 3>> sizes{{1, 1, 1},     {5, 3, 0},    {3, 67, 31},
                                                  {65, 64, 129}, {70, 5, 300}, {103, 37, 1061}};
  for (const auto& size : sizes)
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const T beta : {T{0}, T{1}, T(-0.5)}) {
          const int64_t m = size[0], n = size[1], k = size[2], pad = 3;
          const int64_t lda = (ta ? m : k) + pad, ldb = (tb ? k : n) + pad, ldc = n + pad;
          const Tensor a = random_tensor({ta ? k : m, lda}, dtype_of<T>, 1),
                       b = random_tensor({tb ? n : k, ldb}, dtype_of<T>, 2);
          const Tensor c = random_tensor({m, ldc}, dtype_of<T>, 3);
          if (beta == T{0}) fill(c, std::numeric_limits<double>::quiet_NaN());  // C is not read then
          const Tensor expected = clone(to_dtype(c, DType::f64));
          reference_gemm<double>(ta, tb, m, n, k, 2.0, to_dtype(a, DType::f64).data<double>(), lda,
                                 to_dtype(b, DType::f64).data<double>(), ldb, beta, expected.data<double>(), ldc);
          gemm(ta, tb, m, n, k, T{2}, a.data<T>(), lda, b.data<T>(), ldb, beta, c.data<T>(), ldc);
          CAPTURE(concat(m, ' ', n, ' ', k, ' ', ta, tb, ' ', beta));
          // |sum of k products| errs by at most k + 2 roundings of the sum of their magnitudes, here below 25 k + 10.
          const double terms = static_cast<double>(k);
          CHECK(max_distance(c, expected) <= rounding * (terms + 2.0) * (25.0 * terms + 10.0));
        }
}

TEST_CASE("tiled_gemm: every transposition, edge and bias on every instruction set, the same bits on any threads") {
  const std::vector<std::array<int64_t, 3>> sizes{{1, 1, 1}, {5, 33, 7}, {97, 17, 257}, {103, 300, 1061}};
  for (const auto& size : sizes)
    for (const bool ta : {false, true})
      for (const bool tb : {false, true}) {
        const int64_t m = size[0], n = size[1], k = size[2];
        const Tensor a = random_tensor({ta ? k : m, ta ? m : k}, DType::f32, 1),
                     b = random_tensor({tb ? n : k, tb ? k : n}, DType::f32, 2),
                     bias = random_tensor({n}, DType::f32, 3);
        const Tensor expected = empty({m, n}, DType::f64);
        for (int64_t i = 0; i < m * n; ++i) expected.data<double>()[i] = bias.data<float>()[i % n];
        reference_gemm<double>(ta, tb, m, n, k, 1.0, to_dtype(a, DType::f64).data<double>(), a.dim(1),
                               to_dtype(b, DType::f64).data<double>(), b.dim(1), 1.0, expected.data<double>(), n);
        const auto product = [&] {
          const Tensor c = full({m, n}, DType::f32, std::numeric_limits<double>::quiet_NaN());
          cpu::tiled_gemm(ta, tb, m, n, k, 1.0f, a.data<float>(), a.dim(1), b.data<float>(), b.dim(1), 0.0f,
                          bias.data<float>(), c.data<float>(), n);
          return std::vector<Tensor>{c};
        };
        CAPTURE(concat(m, ' ', n, ' ', k, ' ', ta, tb));
        const double terms = static_cast<double>(k);
        for_each_simd_target(
            [&] { CHECK(max_distance(product()[0], expected) <= 0x1p-24 * (terms + 2.0) * (25.0 * terms + 10.0)); });
        expect_same_bits_on_any_threads(product);
      }
}

TEST_CASE("linear: f64 is the formula") {
  for (const Shape& shape : kShapes) {
    const std::vector<Tensor> in = random_inputs(shape.dim(0), shape.dim(1), 29, DType::f64);
    const Tensor dy = random_tensor({shape.dim(0), 29}, DType::f64, 4);
    expect_close(value_and_gradients(run_linear, in, dy), reference_linear<double>(in, dy), 1e-13);
  }
}

TEST_CASE("linear: f32 is as accurate as the plain loop") {
  for (const Shape& shape : kShapes) {
    const std::vector<Tensor> in = random_inputs(shape.dim(0), shape.dim(1), 29, DType::f32);
    const Tensor dy = random_tensor({shape.dim(0), 29}, DType::f32, 4);
    expect_as_accurate(value_and_gradients(run_linear, in, dy), reference_linear<float>(in, dy),
                       reference_linear<double>(to_dtype(in, DType::f64), to_dtype(dy, DType::f64)));
  }
}

TEST_CASE("linear: without bias it is as with a bias of 0") {
  for (const DType dtype : {DType::f32, DType::f64})
    for (const int64_t rows : {3, 40}) {
      const std::vector<Tensor> in = random_inputs(rows, 31, 29, dtype);
      const Variable x(in[0]), weight(in[1]), zero(zeros({29}, dtype));
      CHECK(max_distance(linear(x, weight).value(), linear(x, weight, zero).value()) == 0.0);
    }
}

TEST_CASE("linear, matmul: gradients match finite differences") {
  const Variable x = random_leaf({2, 3, 5}, 1), weight = random_leaf({4, 5}, 2), bias = random_leaf({4}, 3);
  expect_gradients({x, weight, bias}, [&] { return linear(x, weight, bias); });
  expect_gradients({x, weight}, [&] { return linear(x, weight); });
  const Variable a = random_leaf({3, 4}, 4), b = random_leaf({4, 5}, 5);
  expect_gradients({a, b}, [&] { return matmul(a, b); });
  const Variable square = random_leaf({4, 4}, 6);
  expect_gradients({square}, [&] { return matmul(square, square); });
}

TEST_CASE("linear: keeps the leading dimensions, and takes a single row") {
  const Variable weight(random_tensor({4, 5}, DType::f32, 1));
  CHECK(linear(Variable(zeros({2, 3, 5}, DType::f32)), weight).shape() == Shape{2, 3, 4});
  CHECK(linear(Variable(zeros({5}, DType::f32)), weight).shape() == Shape{4});
  CHECK(linear(Variable(zeros({0, 5}, DType::f32)), weight).shape() == Shape{0, 4});
}

TEST_CASE("linear: adds the weight's gradient to the buffer it views, skips what nobody wants") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const std::vector<Tensor> in = random_inputs(6, 5, 4, dtype);
    const Tensor dy = random_tensor({6, 4}, dtype, 4);
    const std::vector<Tensor> fresh = value_and_gradients(run_linear, in, dy);

    const Tensor buffer = full({4 * 5 + 4}, dtype, 10.0);
    const Variable weight(in[1], buffer.view(0, {4, 5})), bias(in[2], buffer.view(20, {4}));
    const Variable x(in[0]);
    backward(linear(x, weight, bias), dy);
    const Tensor expected = full({24}, dtype, 10.0);
    add_in_place(expected.view(0, {4, 5}), fresh[2]);
    add_in_place(expected.view(20, {4}), fresh[3]);
    CHECK(max_distance(buffer, expected) <= (dtype == DType::f32 ? 0x1p-22 : 0x1p-51) * max_abs(expected));
    CHECK(!x.has_grad());
  }
}

TEST_CASE("linear: weight and bias are rounded to the dtype of x, and read from their copies where there are any") {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const std::vector<Tensor> in = random_inputs(6, 5, 4, DType::f32);
    const Tensor dy = to_dtype(random_tensor({6, 4}, DType::f32, 4), dtype);
    const auto run = [&](const std::vector<Tensor>& values, const std::vector<Tensor>& copies) {
      const Variable x(to_dtype(in[0], dtype), true), weight(values[0], true), bias(values[1], true);
      if (!copies.empty()) weight.keep_rounded(copies[0]), bias.keep_rounded(copies[1]);
      const Variable y = linear(x, weight, bias);
      backward(y, dy);
      return std::vector<Tensor>{y.value(), x.grad(), weight.grad(), bias.grad()};
    };
    const std::vector<Tensor> rounded{to_dtype(in[1], dtype), to_dtype(in[2], dtype)},
        widened{to_dtype(rounded[0], DType::f32), to_dtype(rounded[1], DType::f32)},
        zero{zeros_like(in[1]), zeros_like(in[2])};
    const std::vector<Tensor> expected = run(widened, {}), without = run({in[1], in[2]}, {}), with = run(zero, rounded);
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(same_bits(without[i], expected[i]));
      CHECK(same_bits(with[i], expected[i]));
    }
  }
}

TEST_CASE("linear: the same bits on any number of threads") {
  const std::vector<Tensor> in = random_inputs(300, 70, 90, DType::f64);
  const Tensor dy = random_tensor({300, 90}, DType::f64, 4);
  expect_same_bits_on_any_threads([&] { return value_and_gradients(run_linear, in, dy); });

  const Variable x(zeros({5000, 3}, DType::f32)), weight(zeros({33, 3}, DType::f32));
  const Tensor dy_f32 = random_tensor({5000, 33}, DType::f32, 5);
  expect_same_bits_on_any_threads([&] {  // the bias's gradient is ours in f32 too
    const Variable bias(zeros({33}, DType::f32), /*requires_grad=*/true);
    backward(linear(x, weight, bias), dy_f32);
    return std::vector<Tensor>{bias.grad()};
  });
}

TEST_CASE("linear, matmul: name what does not fit") {
  const Variable x(zeros({2, 3}, DType::f32)), weight(zeros({4, 3}, DType::f32));
  CHECK(message_of([&] {
          linear(x, Variable(zeros({4, 5}, DType::f32)));
        }) == "linear: x must be [..., 5] for weight [4, 5], got [2, 3]");
  CHECK(message_of([&] { linear(x, Variable(zeros({3}, DType::f32))); }) ==
        "linear: weight must be [d_out, d_in], got [3]");
  CHECK(message_of([&] { linear(x, weight, Variable(zeros({3}, DType::f32))); }) ==
        "linear: bias must be [4] for weight [4, 3], got [3]");
  CHECK(message_of([&] {
          linear(x, Variable(zeros({4, 3}, DType::f64)));
        }) == "linear: parameters must be f32 on cpu for x of f32, got f64 on cpu");
  CHECK(message_of([&] { matmul(x, weight); }) == "matmul: a and b must be [m, k] and [k, n], got [2, 3] and [4, 3]");
  const Variable bytes(zeros({2, 2}, DType::u8));
  CHECK(message_of([&] { matmul(bytes, bytes); }) == "matmul: dtype must be f32 or f64, got u8");
}

TEST_CASE("linear_rows: a row has the same bits however many rows there are") {
  const Parameters weights({{"w", {96, 200}, 0.1}, {"b", {96}, 0.1}, {"x", {11, 200}, 1.0}}, 2);
  const Tensor x = weights["x"].value();
  const Tensor y = linear_rows(x, weights["w"], weights["b"]);
  CHECK(y.shape() == Shape{11, 96});
  for (int64_t rows = 1; rows <= 11; ++rows) {
    const Tensor part = linear_rows(x.slice(0, rows), weights["w"], weights["b"]);
    CHECK(std::memcmp(part.raw(), y.raw(), static_cast<size_t>(part.bytes())) == 0);
  }
  const std::vector<float> x_rows = to_vector<float>(x), w = to_vector<float>(weights["w"].value()),
                           b = to_vector<float>(weights["b"].value());
  const std::vector<float> got = to_vector<float>(y);
  for (size_t r = 0; r < 11; ++r)
    for (size_t o = 0; o < 96; ++o) {
      double sum = double{b[o]};
      for (size_t i = 0; i < 200; ++i) sum += double{x_rows[r * 200 + i]} * double{w[o * 200 + i]};
      CHECK(std::abs(double{got[r * 96 + o]} - sum) < 1e-5);
    }
}

}  // namespace lacuna::test
