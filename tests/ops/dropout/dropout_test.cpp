#include "ops/dropout/dropout.h"

#include "autograd/checkpoint.h"
#include "autograd/gradcheck.h"
#include "ops/add/add.h"
#include "ops/dropout/dropout_kernels.h"
#include "tests/support/expect_error.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

constexpr Run kRun{.training = true, .seed = 42, .step = 7, .first_sample = 3};

/// The header's words, one element after the other.
template <class T>
Tensor reference(const Tensor& x, double rate, int64_t op, const Run& run) {
  const Rng rng(run.seed, RandomPurpose::dropout);
  const double rounded = std::round(rate * 65536.0) / 65536.0;
  const int64_t size = x.numel() / x.dim(0);
  const Tensor y = empty_like(x);
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t e = 0; e < size; ++e) {
      const Philox::Block block = rng.bits({.step = run.step, .sample = run.first_sample + b, .op = op}, e / 8);
      const uint32_t pair = block.word[e % 8 / 2], word = e % 2 == 0 ? pair & 0xffff : pair >> 16;
      const T xi = x.data<T>()[b * size + e];
      y.data<T>()[b * size + e] = word < rounded * 65536.0 ? T{0} : xi * static_cast<T>(1.0 / (1.0 - rounded));
    }
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE("dropout: the mask of the header, forward and backward, on every instruction set", T, float,
                   double) {
  for_each_simd_target([] {
    for (const Shape& shape : std::vector<Shape>{{1, 1}, {3, 7}, {2, 31}, {3, 5, 13}, {2, 1000}, {2, 20'001}})
      for (const float rate : {0.1f, 0.25f, 0.5f, 0.99f}) {
        CAPTURE(concat(shape, ' ', rate));
        const Tensor x = random_tensor(shape, dtype_of<T>, 1), dy = random_tensor(shape, dtype_of<T>, 2);
        const auto run = [&](const std::vector<Variable>& in) { return dropout(in[0], rate, 300, kRun); };
        expect_same_bits(value_and_gradients(run, {x}, dy),
                         {reference<T>(x, rate, 300, kRun), reference<T>(dy, rate, 300, kRun)});
      }
  });
}

TEST_CASE_TEMPLATE("add_dropout: the bits of a dropout and a sum, on every instruction set", T, float, double) {
  for_each_simd_target([] {
    for (const Shape& shape : std::vector<Shape>{{3, 7}, {3, 5, 13}, {2, 20'001}})
      for (const float rate : {0.0f, 0.25f}) {
        CAPTURE(concat(shape, ' ', rate));
        const std::vector<Tensor> in{random_tensor(shape, dtype_of<T>, 1), random_tensor(shape, dtype_of<T>, 2)};
        const Tensor dy = random_tensor(shape, dtype_of<T>, 3);
        expect_same_bits(
            value_and_gradients([&](const auto& v) { return add_dropout(v[0], v[1], rate, 300, kRun); }, in, dy),
            value_and_gradients([&](const auto& v) { return v[0] + dropout(v[1], rate, 300, kRun); }, in, dy));
      }
  });
  const Variable x(zeros({2, 2}, DType::f32)), other(zeros({2, 3}, DType::f32));
  CHECK(message_of([&] { add_dropout(x, other, 0.1f, 0, kRun); }) ==
        "add_dropout: x must have a batch dimension and the shape of residual, got [2, 3] and [2, 2]");
}

TEST_CASE("dropout: a batch split in parts has the mask of the whole, in f32 and f64") {
  const Tensor ones = full({6, 101}, DType::f32, 1.0);
  const Tensor whole = dropout(Variable(ones), 0.3f, 5, kRun).value();
  CHECK(max_distance(dropout(Variable(to_dtype(ones, DType::f64)), 0.3f, 5, kRun).value(), whole) < 1e-6);
  for (const int64_t part : {1, 2, 3})
    for (int64_t b = 0; b < 6; b += part) {
      Run run = kRun;
      run.first_sample += b;
      CHECK(same_bits(dropout(Variable(ones.slice(b, b + part)), 0.3f, 5, run).value(), whole.slice(b, b + part)));
    }
}

TEST_CASE("dropout: other seeds, steps, samples and ops have other masks") {
  const Tensor ones = full({1, 512}, DType::f32, 1.0);
  const auto mask = [&](const Run& run, int64_t op) { return dropout(Variable(ones), 0.5f, op, run).value(); };
  const Tensor first = mask(kRun, 0);
  Run other = kRun;
  other.seed = 43;
  CHECK(!same_bits(mask(other, 0), first));
  other = kRun;
  other.step = 8;
  CHECK(!same_bits(mask(other, 0), first));
  other = kRun;
  other.first_sample = 4;
  CHECK(!same_bits(mask(other, 0), first));
  CHECK(!same_bits(mask(kRun, 1), first));
}

TEST_CASE("dropout: drops the asked share of elements") {
  constexpr int64_t kCount = 200'000;
  for (const float rate : {0.1f, 0.25f, 0.9f}) {
    const Tensor y = dropout(Variable(full({1, kCount}, DType::f32, 1.0)), rate, 0, kRun).value();
    const std::vector<float> values = to_vector<float>(y);
    const auto dropped = static_cast<double>(std::count(values.begin(), values.end(), 0.0f));
    const double sigma = std::sqrt(kCount * rate * (1.0 - rate));
    CHECK(std::abs(dropped - kCount * rate) < 5.0 * sigma);
  }
}

TEST_CASE("dropout: draws the same mask when backward recomputes") {
  const Tensor x = random_tensor({2, 50}, DType::f32, 1), dy = random_tensor({2, 50}, DType::f32, 2);
  const auto run = [](const Variable& v) { return dropout(v, 0.4f, 9, kRun); };
  expect_same_bits(value_and_gradients([&](const auto& in) { return checkpoint(run, in[0]); }, {x}, dy),
                   value_and_gradients([&](const auto& in) { return run(in[0]); }, {x}, dy));
}

TEST_CASE("dropout: the identity outside training and at rate 0; infinities do not survive being dropped") {
  const Variable x(random_tensor({2, 9}, DType::f32, 1));
  CHECK(dropout(x, 0.5f, 0, Run{}).value().raw() == x.value().raw());
  CHECK(dropout(x, 0.0f, 0, kRun).value().raw() == x.value().raw());
  const Tensor y = dropout(Variable(full({1, 64}, DType::f32, INFINITY)), 0.5f, 0, kRun).value();
  const std::vector<float> values = to_vector<float>(y);
  CHECK(std::count(values.begin(), values.end(), 0.0f) + std::count(values.begin(), values.end(), INFINITY) == 64);
}

TEST_CASE("dropout: gradients match finite differences") {
  const Variable x = random_leaf({3, 11}, 1);
  expect_gradients({x}, [&] { return dropout(x, 0.4f, 2, kRun); });
}

TEST_CASE("dropout: the same bits on any number of threads") {
  const Tensor x = random_tensor({3, 50'000}, DType::f32, 1);
  expect_same_bits_on_any_threads([&] { return std::vector<Tensor>{dropout(Variable(x), 0.1f, 1, kRun).value()}; });
}

TEST_CASE("dropout: names what is out of range") {
  const Variable x(zeros({2, 2}, DType::f32));
  for (const float rate : {-0.1f, 1.0f, 0.999999f, NAN})
    CHECK(message_of([&] {
            dropout(x, rate, 0, kRun);
          }).starts_with("dropout: rate must be in [0, 1) when rounded to a multiple of 2^-16, got "));
  CHECK(message_of([&] { dropout(x, 0.1f, 65536, kRun); }) == "dropout: op must be in [0, 65536), got 65536");
  CHECK(message_of([&] { dropout(x, 0.1f, -1, kRun); }) == "dropout: op must be in [0, 65536), got -1");
  CHECK(message_of([&] { dropout(Variable(zeros({}, DType::f32)), 0.1f, 0, kRun); }) ==
        "dropout: x must have a batch dimension, got []");
  CHECK(message_of([&] {
          dropout(Variable(zeros({2, 2}, DType::i64)), 0.1f, 0, kRun);
        }) == "dropout: dtype must be f32 or f64, got i64");
}

}  // namespace lacuna::test
