#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"

#include <numbers>

#include "autograd/gradcheck.h"
#include "tests/support/expect_error.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

Function run(const Tensor& targets) {
  return [targets](const std::vector<Variable>& in) { return softmax_cross_entropy(in[0], targets); };
}

template <class T>
std::vector<Tensor> reference(const Tensor& logits, const Tensor& targets, T dloss) {
  const int64_t n_vocab = logits.dim(-1), rows = targets.numel();
  const Tensor dlogits = empty_like(logits);
  T loss = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const T* const z = logits.data<T>() + r * n_vocab;
    const int64_t target = targets.data<uint8_t>()[r];
    const T m = *std::max_element(z, z + n_vocab);
    T sum = 0;
    for (int64_t j = 0; j < n_vocab; ++j) sum += std::exp(z[j] - m);
    loss += m + std::log(sum) - z[target];
    for (int64_t j = 0; j < n_vocab; ++j)
      dlogits.data<T>()[r * n_vocab + j] = dloss * (std::exp(z[j] - m) / sum - (j == target ? T{1} : T{0})) / T(rows);
  }
  return {from_vector<T>({loss / T(rows)}, {}), dlogits};
}

// [rows, n_vocab]; a byte can name no target beyond 255, but logits may be wider.
const std::vector<Shape> kLogits{{1, 1}, {3, 31}, {4, 32}, {9, 33}, {130, 7}, {70, 256}, {2, 1000}};

Tensor random_targets(const Shape& logits) {
  return random_tokens({logits.dim(0)}, std::min<int64_t>(256, logits.dim(1)), 3);
}

}  // namespace

TEST_CASE("softmax_cross_entropy: f64 is the formula") {
  for (const Shape& shape : kLogits) {
    const Tensor z = random_tensor(shape, DType::f64, 1, 5.0), targets = random_targets(shape);
    expect_close(value_and_gradients(run(targets), {z}, full({}, DType::f64, 3.0)), reference<double>(z, targets, 3.0),
                 1e-12);
  }
}

TEST_CASE("softmax_cross_entropy: f32 is as accurate as the plain loop on every instruction set") {
  for_each_simd_target([] {
    for (const Shape& shape : kLogits) {
      if (shape.dim(1) == 1) continue;  // loss and gradient are exactly zero, tested above
      const Tensor z = random_tensor(shape, DType::f32, 1, 5.0), targets = random_targets(shape);
      const std::vector<Tensor> exact = reference<double>(to_dtype(z, DType::f64), targets, 3.0);
      const std::vector<Tensor> fast = value_and_gradients(run(targets), {z}, full({}, DType::f32, 3.0));
      expect_as_accurate({fast[0]}, {reference<float>(z, targets, 3.0f)[0]}, {exact[0]});
      // dlogits is read from the log-sum-exp, whose own rounding is relative to its size.
      CHECK(max_distance(fast[1], exact[1]) <= 3.0 / static_cast<double>(shape.dim(0)) * 0x1p-24 * (max_abs(z) + 8.0));
    }
  });
}

TEST_CASE("softmax_cross_entropy: logits of zero cost exactly 8 bits for each byte") {
  for (const int64_t rows : {1, 3, 7, 100, 3072}) {
    const Tensor targets = random_tokens({rows}, 256, 1);
    const Tensor f64 = softmax_cross_entropy(Variable(zeros({rows, 256}, DType::f64)), targets).value();
    CHECK(*f64.data<double>() / std::numbers::ln2 == 8.0);
    for_each_simd_target([&] {
      const Tensor f32 = softmax_cross_entropy(Variable(zeros({rows, 256}, DType::f32)), targets).value();
      CHECK(*f32.data<float>() == static_cast<float>(8.0 * std::numbers::ln2));
    });
  }
}

TEST_CASE("softmax_cross_entropy: huge logits neither overflow nor underflow the loss") {
  for_each_simd_target([] {
    const Tensor z = from_vector<float>({1e4f, -1e4f, 0.0f, -1e4f}, {2, 2}),
                 targets = from_vector<uint8_t>({0, 1}, {2});
    const std::vector<Tensor> r = value_and_gradients(run(targets), {z}, full({}, DType::f32, 1.0));
    CHECK(*r[0].data<float>() == 5e3f);
    CHECK(to_vector<float>(r[1]) == std::vector<float>{0.0f, 0.0f, 0.5f, -0.5f});
  });
}

TEST_CASE("softmax_cross_entropy: a NaN anywhere in a row is a NaN of the loss") {
  for_each_simd_target([] {
    for (const int64_t bad : {0, 1, 20, 32, 34}) {
      const Tensor z = zeros({1, 35}, DType::f32);
      z.data<float>()[bad] = std::numeric_limits<float>::quiet_NaN();
      CHECK(std::isnan(*softmax_cross_entropy(Variable(z), zeros({1}, DType::u8)).value().data<float>()));
    }
  });
}

TEST_CASE("cross_entropy_per_row: the terms of the mean") {
  const Tensor z = random_tensor({2, 3, 10}, DType::f64, 1), targets = random_tokens({2, 3}, 10, 2);
  const Tensor rows = cross_entropy_per_row(z, targets);
  CHECK(rows.shape() == Shape{2, 3});
  double sum = 0.0;
  for (int64_t r = 0; r < 6; ++r) {
    const Variable row(z.view(10 * r, {1, 10}));
    CHECK(*softmax_cross_entropy(row, targets.view(r, {1})).value().data<double>() == rows.data<double>()[r]);
    sum += rows.data<double>()[r];
  }
  CHECK(*softmax_cross_entropy(Variable(z), targets).value().data<double>() ==
        doctest::Approx(sum / 6.0).epsilon(1e-14));
  CHECK(cross_entropy_per_row(to_dtype(z, DType::f32), targets).dtype() == DType::f32);
}

TEST_CASE("softmax_cross_entropy: gradients match finite differences") {
  const Variable z = random_leaf({2, 3, 7}, 1);
  const Tensor targets = random_tokens({2, 3}, 7, 2);
  expect_gradients({z}, [&] { return softmax_cross_entropy(z, targets); });
}

TEST_CASE("softmax_cross_entropy: the same bits on any number of threads") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor z = random_tensor({1001, 37}, dtype, 1), targets = random_tokens({1001}, 37, 2);
    expect_same_bits_on_any_threads([&] { return value_and_gradients(run(targets), {z}, full({}, dtype, 1.0)); });
  }
}

TEST_CASE("softmax_cross_entropy: names what does not fit") {
  const Variable z(zeros({2, 4}, DType::f32));
  CHECK(message_of([&] {
          softmax_cross_entropy(z, from_vector<uint8_t>({3, 4}, {2}));
        }) == "softmax_cross_entropy: targets must be below n_vocab 4, got 4 at [1]");
  CHECK(message_of([&] { softmax_cross_entropy(z, zeros({4}, DType::u8)); }) ==
        "softmax_cross_entropy: targets must be [2] for logits [2, 4], got [4]");
  CHECK(message_of([&] { softmax_cross_entropy(z, zeros({2}, DType::i64)); }) ==
        "softmax_cross_entropy: targets must be u8, got i64");
  CHECK(message_of([&] {
          softmax_cross_entropy(Variable(zeros({0, 4}, DType::f32)), zeros({0}, DType::u8));
        }) == "softmax_cross_entropy: the mean needs at least one row, got logits [0, 4]");
  CHECK(message_of([&] {
          softmax_cross_entropy(Variable(zeros({2, 4}, DType::i32)), zeros({2}, DType::u8));
        }) == "softmax_cross_entropy: dtype must be f32 or f64, got i32");
  CHECK(message_of([&] { cross_entropy_per_row(z.value(), zeros({3}, DType::u8)); }) ==
        "cross_entropy_per_row: targets must be [2] for logits [2, 4], got [3]");
}

}  // namespace lacuna::test
