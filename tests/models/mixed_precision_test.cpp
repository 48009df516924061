#include <doctest/doctest.h>

#include <cmath>

#include "models/sampler.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/loss_scaler.h"
#include "tests/models/tiny_models.h"
#include "tests/support/expect_error.h"
#include "tests/support/tensors.h"

namespace lacuna {
using test::same_bits;
namespace {

/// The losses of a small model with dropout that learns one text by heart, in nats, step by step.
std::vector<double> training_curve(DType dtype, int64_t steps) {
  ModelConfig config = tiny_config("local(window=4), column(stride=4)");
  config.dropout = 0.1f;
  const SparseTransformer model(config, /*seed=*/1, dtype);
  Adam adam(model.parameters(), {});
  LossScaler scaler(/*dynamic=*/dtype == DType::f16);
  const Tensor tokens = random_tokens(/*batch=*/4, config.n_ctx, config.n_vocab);
  std::vector<double> losses;
  for (int64_t step = 0; step < steps; ++step) {
    const double scale = scaler.scale();
    model.parameters().clear_gradients();
    const Variable loss = model.loss(tokens, {.training = true, .seed = 2, .step = step});
    losses.push_back(elements(loss.value())[0]);
    backward(loss, full({}, loss.dtype(), scale));
    const double norm = global_gradient_norm(model.parameters()) / scale;
    if (scaler.update(norm)) adam.step(1e-3, clip_scale(norm, 1.0) / scale);
  }
  return losses;
}

TEST_CASE("mixed precision: parameters, gradients and loss are f32, whatever the activations") {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const SparseTransformer model(tiny_config("dense"), 1, dtype);
    const Tensor tokens = random_tokens(2, 23, 11);
    CHECK(model.parameters().values().dtype() == DType::f32);
    CHECK(model.parameters().gradients().dtype() == DType::f32);
    CHECK(model(tokens, {}).dtype() == dtype);
    const Variable loss = model.loss(tokens, {});
    CHECK(loss.dtype() == DType::f32);
    CHECK(elements(loss.value())[0] == doctest::Approx(std::log(11.0)).epsilon(1e-7));  // logits begin at zero
  }
}

TEST_CASE("mixed precision: the copy that products read is that of the weights, whoever changed them") {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const SparseTransformer model(tiny_config("dense"), 1, dtype);
    const Parameters& parameters = model.parameters();
    const auto is_current = [&] { return same_bits(parameters.rounded(), to_dtype(parameters.values(), dtype)); };
    CHECK(is_current());
    Adam adam(parameters, {});
    Ema ema(parameters, 0.5);
    const Tensor tokens = random_tokens(2, 23, 11), first = clone(parameters.rounded());
    for (int64_t step = 0; step < 2; ++step) {
      parameters.clear_gradients();
      backward(model.loss(tokens, {}));
      adam.step({.lr = 0.1, .ema = &ema});
      CHECK(is_current());
    }
    CHECK(!same_bits(parameters.rounded(), first));
    const Tensor last = clone(parameters.rounded());
    ema.swap();
    CHECK(is_current());
    CHECK(!same_bits(parameters.rounded(), last));
    ema.swap();
    CHECK(same_bits(parameters.rounded(), last));
    perturb(model);
    CHECK(is_current());
  }
  CHECK(!SparseTransformer(tiny_config("dense"), 1).parameters().rounded().defined());
}

TEST_CASE("mixed precision: a copy that is out of date is noticed") {
  const SparseTransformer model(tiny_config("dense"), 1, DType::bf16);
  const Parameters& parameters = model.parameters();
  const auto expect_noticed = [&] {
    const char* const message = "the copy of blocks.1.ff.in.weight in bf16 is out of date";
    expect_error(message, [&] { parameters.check_rounded(); });
#ifndef NDEBUG
    expect_error(message, [&] { model(random_tokens(2, 23, 11), {}); });
#endif
    parameters.update_rounded();
    parameters.check_rounded();
    model(random_tokens(2, 23, 11), {});
  };
  float* const last =
      parameters["blocks.1.ff.in.weight"].value().data<float>() + parameters["blocks.1.ff.in.weight"].numel() - 1;
  *last = 1.0f;  // a write by hand
  expect_noticed();
  *last = 1.0f + 0x1p-7f;  // by the last bit of bf16
  expect_noticed();
}

TEST_CASE("mixed precision: training has the bits of training that rounds its weights each time") {
  const auto train = [](bool keeps_copy) {
    const SparseTransformer model(tiny_config("dense"), 1, DType::bf16);
    const Parameters& parameters = model.parameters();
    if (!keeps_copy)
      for (const Parameters::Entry& leaf : parameters.leaves()) leaf.variable.keep_rounded(leaf.variable.value());
    Adam adam(parameters, {});
    for (int64_t step = 0; step < 3; ++step) {
      parameters.clear_gradients();
      backward(model.loss(random_tokens(2, 23, 11), {.training = true, .seed = 2, .step = step}));
      adam.step(0.01);
    }
    return clone(parameters.values());
  };
  CHECK(same_bits(train(true), train(false)));
}

TEST_CASE("mixed precision: the curves of bf16 and f16 stay in a band around that of f32") {
  constexpr int64_t kSteps = 200;
  const std::vector<double> exact = training_curve(DType::f32, kSteps);
  CHECK(exact.back() < 0.6 * exact.front());  // it learns
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const std::vector<double> curve = training_curve(dtype, kSteps);
    double furthest = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) furthest = std::max(furthest, std::abs(curve[i] - exact[i]));
    CAPTURE(name_of(dtype));
    CHECK(furthest > 0.0);
    CHECK(furthest < 0.05);  // nats; the curves fall from 2.40 to 0.85
  }
}

TEST_CASE("mixed precision: without loss scaling small gradients vanish in f16, with it they stay") {
  const SparseTransformer model(tiny_config("dense"), 1, DType::f16), exact(tiny_config("dense"), 1, DType::f32);
  const Tensor tokens = random_tokens(2, 23, 11);
  for (const SparseTransformer* m : {&model, &exact}) perturb(*m, 0.01);
  const auto gradient_norm = [&](const SparseTransformer& m, double scale, double of_loss) {
    m.parameters().clear_gradients();
    const Variable loss = m.loss(tokens, {});
    backward(loss, full({}, loss.dtype(), scale * of_loss));
    return global_gradient_norm(m.parameters()) / scale;
  };
  constexpr double kTiny = 1e-6;  // a loss so small that its gradients are below the numbers of f16
  const double expected = gradient_norm(exact, 1.0, kTiny);
  CHECK(gradient_norm(model, 65536.0, kTiny) == doctest::Approx(expected).epsilon(0.02));
  CHECK(gradient_norm(model, 1.0, kTiny) < 0.5 * expected);
}

TEST_CASE("mixed precision: sampling computes in f32, where q k^T beyond f16 is no infinity") {
  const SparseTransformer model(tiny_config("local(window=4) + column(stride=4)"), 1, DType::f16);
  const SparseTransformer exact(tiny_config("local(window=4) + column(stride=4)"), 1, DType::f32);
  for (const SparseTransformer* m : {&model, &exact}) {
    perturb(*m);
    for (const char* name : {"blocks.0.attention.q.weight", "blocks.0.attention.k.weight"}) {
      const Tensor& w = m->parameters()[name].value();
      for (int64_t i = 0; i < w.numel(); ++i) w.data<float>()[i] *= 3000.0f;
    }
    m->parameters().update_rounded();
  }
  Decoder decoder(model, 2), reference(exact, 2);
  for (int64_t t = 0; t < 5; ++t) {
    const Tensor previous = t ? full({2}, DType::u8, static_cast<double>(t)) : Tensor();
    const std::vector<double> logits = elements(decoder.step(previous));
    CHECK(logits == elements(reference.step(previous)));
    for (const double x : logits) CHECK(std::isfinite(x));
  }
}

}  // namespace
}  // namespace lacuna
