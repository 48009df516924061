#include "ops/add_dropout_layer_norm/add_dropout_layer_norm.h"

#include "autograd/checkpoint.h"
#include "autograd/gradcheck.h"
#include "ops/add/add.h"
#include "ops/dropout/dropout.h"
#include "ops/layer_norm/layer_norm.h"
#include "tests/support/expect_error.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

constexpr Run kRun{.training = true, .seed = 42, .step = 7, .first_sample = 3};
constexpr int64_t kOp = 5;

/// Samples whose rows and elements are, and are not, multiples of what a thread, a vector or a Philox block takes.
const std::vector<Shape> kSamples{{1, 1, 2}, {3, 5, 7}, {2, 33, 31}, {4, 16, 32}, {2, 3, 5, 64}, {5, 264}};

SumAndNorm separate(const Variable& residual, const Variable& branch, float rate, const Run& run, const Variable& gain,
                    const Variable& bias) {
  const Variable sum = residual + dropout(branch, rate, kOp, run);
  return {sum, layer_norm(sum, gain, bias)};
}

SumAndNorm fused(const Variable& residual, const Variable& branch, float rate, const Run& run, const Variable& gain,
                 const Variable& bias) {
  return add_dropout_layer_norm(residual, branch, rate, kOp, run, gain, bias);
}

/// residual, branch, gain, bias.
std::vector<Tensor> random_inputs(const Shape& shape, DType dtype) {
  const Shape d_model{shape.dim(-1)};
  const DType parameters = accumulation_dtype(dtype);
  return {random_tensor(shape, dtype, 1, 2.0), random_tensor(shape, dtype, 2), random_tensor(d_model, parameters, 3),
          random_tensor(d_model, parameters, 4)};
}

/// The results and gradients {sum, norm, dresidual, dbranch, dgain, dbias} of `op` for random dsum and dnorm. A sum of
/// both results, each dropped out by another mask, is what reads them: their gradients differ.
template <class Op>
std::vector<Tensor> run(const Op& op, const std::vector<Tensor>& in, float rate, const Run& where = kRun) {
  std::vector<Variable> v;
  for (const Tensor& t : in) v.emplace_back(t, /*requires_grad=*/true);
  const SumAndNorm y = op(v[0], v[1], rate, where, v[2], v[3]);
  const Variable read = dropout(y.sum, 0.5f, 100, kRun) + dropout(y.norm, 0.25f, 101, kRun);
  backward(read, random_tensor(in[0].shape(), in[0].dtype(), 9));
  return {y.sum.value(), y.norm.value(), v[0].grad(), v[1].grad(), v[2].grad(), v[3].grad()};
}

}  // namespace

TEST_CASE("add_dropout_layer_norm: in f64 the bits of the separate operations") {
  for (const Shape& shape : kSamples)
    for (const float rate : {0.0f, 0.3f}) {
      CAPTURE(concat(shape, ' ', rate));
      const std::vector<Tensor> in = random_inputs(shape, DType::f64);
      expect_same_bits(run(fused, in, rate), run(separate, in, rate));
    }
}

TEST_CASE("add_dropout_layer_norm: in f32 their bits forward, their accuracy backward, on every instruction set") {
  for_each_simd_target([] {
    for (const Shape& shape : kSamples)
      for (const float rate : {0.0f, 0.3f}) {
        CAPTURE(concat(shape, ' ', rate));
        const std::vector<Tensor> in = random_inputs(shape, DType::f32);
        const std::vector<Tensor> one = run(fused, in, rate), three = run(separate, in, rate);
        expect_same_bits({one[0], one[1], one[4], one[5]}, {three[0], three[1], three[4], three[5]});
        expect_as_accurate(one, three, run(separate, to_dtype(in, DType::f64), rate));
      }
  });
}

TEST_CASE("add_dropout_layer_norm: bf16 and f16 round each result once") {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const double rounding = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
    const std::vector<Tensor> in = random_inputs({3, 5, 24}, dtype);
    std::vector<Tensor> wide{to_dtype({in[0], in[1]}, DType::f32)};
    wide.insert(wide.end(), {in[2], in[3]});
    const std::vector<Tensor> y = run(fused, in, 0.3f), sums = run(fused, wide, 0.3f);
    CHECK(same_bits(y[0], lacuna::to_dtype(sums[0], dtype)));
    // The norm is that of the rounded sum.
    CHECK(same_bits(y[1], layer_norm(Variable(y[0]), Variable(in[2]), Variable(in[3])).value()));
    // What reads the results rounds both gradients, and so does this operation; each by at most their largest.
    for (size_t i = 2; i < 4; ++i) CHECK(max_distance(y[i], sums[i]) <= 8.0 * rounding * max_abs(sums[i]));
  }
}

TEST_CASE("residual_layer_norm: the residual itself, and both its gradients in one") {
  for (const Shape& shape : kSamples) {
    CAPTURE(concat(shape));
    const std::vector<Tensor> in = random_inputs(shape, DType::f64);
    const auto one = [](const Variable& x, const Variable&, float, const Run&, const Variable& gain,
                        const Variable& bias) { return residual_layer_norm(x, gain, bias); };
    const auto two = [](const Variable& x, const Variable&, float, const Run&, const Variable& gain,
                        const Variable& bias) {
      return SumAndNorm{x, layer_norm(x, gain, bias)};
    };
    const auto without_branch = [&](const auto& op) {
      std::vector<Variable> v;
      for (const Tensor& t : in) v.emplace_back(t, /*requires_grad=*/true);
      const SumAndNorm y = op(v[0], {}, 0.0f, kRun, v[2], v[3]);
      backward(dropout(y.sum, 0.5f, 100, kRun) + y.norm, random_tensor(shape, DType::f64, 9));
      return std::vector<Tensor>{y.sum.value(), y.norm.value(), v[0].grad(), v[2].grad(), v[3].grad()};
    };
    expect_same_bits(without_branch(one), without_branch(two));
  }
  const Variable x(random_tensor({2, 4}, DType::f32, 1)), four(random_tensor({4}, DType::f32, 2));
  CHECK(residual_layer_norm(x, four, four).sum.value().raw() == x.value().raw());
}

TEST_CASE("add_dropout_layer_norm: gradients match finite differences, whichever result is read") {
  const Variable residual = random_leaf({2, 3, 7}, 1), branch = random_leaf({2, 3, 7}, 2), gain = random_leaf({7}, 3),
                 bias = random_leaf({7}, 4);
  for (const float rate : {0.0f, 0.4f}) {
    const auto run = [&] { return add_dropout_layer_norm(residual, branch, rate, kOp, kRun, gain, bias); };
    expect_gradients({residual, branch, gain, bias}, [&] { return run().norm; });
    expect_gradients({residual, branch}, [&] { return run().sum; });
    expect_gradients({residual, branch, gain, bias}, [&] {
      const SumAndNorm y = run();
      return dropout(y.sum, 0.5f, 100, kRun) + y.norm;
    });
  }
}

TEST_CASE("add_dropout_layer_norm: the same mask when backward recomputes") {
  const std::vector<Tensor> in = random_inputs({2, 9, 20}, DType::f32);
  const auto inside = [](const std::vector<Variable>& v) {
    const SumAndNorm y = fused(v[0], v[1], 0.4f, kRun, v[2], v[3]);
    return y.sum + y.norm;
  };
  const Tensor dy = random_tensor({2, 9, 20}, DType::f32, 9);
  expect_same_bits(value_and_gradients([&](const auto& v) { return checkpoint(inside, v); }, in, dy),
                   value_and_gradients(inside, in, dy));
}

TEST_CASE("add_dropout_layer_norm: outside training nothing is dropped") {
  const std::vector<Tensor> in = random_inputs({2, 3, 16}, DType::f32);
  expect_same_bits(run(fused, in, 0.5f, Run{}), run(fused, in, 0.0f));
}

TEST_CASE("add_dropout_layer_norm: the same bits on any number of threads") {
  const std::vector<Tensor> in = random_inputs({7, 143, 48}, DType::f32);
  expect_same_bits_on_any_threads([&] { return run(fused, in, 0.3f); });
}

TEST_CASE("add_dropout_layer_norm: names what does not fit") {
  const Variable x(zeros({2, 4}, DType::f32)), other(zeros({4, 2}, DType::f32)), four(zeros({4}, DType::f32)),
      three(zeros({3}, DType::f32));
  CHECK(message_of([&] { fused(x, other, 0.1f, kRun, four, four); }) ==
        "add_dropout_layer_norm: branch must be [2, 4] like residual, got [4, 2]");
  CHECK(message_of([&] { fused(x, x, 0.1f, kRun, four, three); }) ==
        "add_dropout_layer_norm: gain and bias must be [4], the last dimension of residual, got [3]");
  CHECK(message_of([&] { fused(x, {}, 0.1f, kRun, four, four); }) == "add_dropout_layer_norm: needs a branch");
  CHECK(message_of([&] { fused(four, four, 0.1f, kRun, four, four); }) ==
        "add_dropout_layer_norm: residual must be [batch, ..., d_model], got [4]");
  CHECK(message_of([&] { fused(x, x, 1.0f, kRun, four, four); }) ==
        "dropout: rate must be in [0, 1) when rounded to a multiple of 2^-16, got 1");
  CHECK(message_of([&] {
          residual_layer_norm(Variable(zeros({2, 0}, DType::f32)), four, four);
        }) == "residual_layer_norm: residual must have a last dimension of at least 1, got [2, 0]");
}

}  // namespace lacuna::test
