#include "models/residual_block.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/add/add.h"
#include "ops/dropout/dropout.h"
#include "tests/models/tiny_models.h"

namespace lacuna {
namespace {

TEST_CASE("residual_block: with zero output matrices it is the identity") {
  const SparseTransformer model(tiny_config("dense"), 1, DType::f64);
  for (const char* name : {"blocks.1.attention.out.weight", "blocks.1.ff.out.weight"})
    fill(model.parameters()[name].value(), 0.0);
  const ResidualBlock block(model.config(), 1, model.parameters());
  const Variable h(from_vector(std::vector<double>(2 * 3 * 16, 0.75), {2, 3, 16}));
  CHECK(elements(block(h, {}).value()) == elements(h.value()));
}

TEST_CASE("residual_block: an empty row of a split fixed head is zero: only its biases act") {
  ModelConfig config = tiny_config("fixed_summary(stride=6, c=2)");  // positions 0..3 have no key
  config.n_layers = 1;
  const SparseTransformer model(config, 1, DType::f64);
  perturb(model);
  for (const char* name : {"ff.out.weight", "ff.out.bias"})
    fill(model.parameters()[concat("blocks.0.", name)].value(), 0.0);
  const ResidualBlock block(config, 0, model.parameters());

  std::vector<double> input(7 * 16);
  for (size_t e = 0; e < input.size(); ++e) input[e] = std::sin(static_cast<double>(e));
  const Variable h(from_vector(input, {1, 7, 16}), /*requires_grad=*/true);
  const Variable y = block(h, {});
  const std::vector<double> output = elements(y.value());
  const std::vector<double> bias = elements(model.parameters()["blocks.0.attention.out.bias"].value());
  for (size_t e = 0; e < 4 * 16; ++e) CHECK(output[e] == doctest::Approx(input[e] + bias[e % 16]).epsilon(1e-14));
  CHECK(output[4 * 16] != doctest::Approx(input[4 * 16] + bias[0]).epsilon(1e-6));

  // A loss that reads the empty rows alone: its gradient reaches h through the residual stream and nothing else.
  const Tensor seed = zeros({1, 7, 16}, DType::f64);
  fill(seed.view(0, {4 * 16}), 1.0);
  backward(y, seed);
  CHECK(elements(h.grad()) == elements(seed));
  for (const char* name :
       {"attention.q.weight", "attention.k.weight", "attention.v.weight", "attention.out.weight", "norm_a.gain"}) {
    CAPTURE(name);
    const std::vector<double> gradient = elements(model.parameters()[concat("blocks.0.", name)].grad());
    CHECK(std::all_of(gradient.begin(), gradient.end(), [](double g) { return g == 0.0; }));
  }
}

TEST_CASE("residual_block: the branches of layer l draw their masks as ops 2 l and 2 l + 1") {
  ModelConfig config = tiny_config("dense");
  config.dropout = 0.5f;
  const SparseTransformer model(config, 1, DType::f64);
  const Run run{.training = true, .seed = 5, .step = 3, .first_sample = 4};
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const auto branch_gives = [&](const char* name, double value) {
      fill(model.parameters()[concat("blocks.", layer, '.', name, ".weight")].value(), 0.0);
      fill(model.parameters()[concat("blocks.", layer, '.', name, ".bias")].value(), value);
      return Variable(full({2, 5, 16}, DType::f64, value));
    };
    const Variable a = branch_gives("attention.out", 1.0), b = branch_gives("ff.out", 2.0);
    const ResidualBlock block(config, layer, model.parameters());
    const Variable y = block(Variable(zeros({2, 5, 16}, DType::f64)), run);
    CHECK(elements(y.value()) ==
          elements((dropout(a, 0.5f, 2 * layer, run) + dropout(b, 0.5f, 2 * layer + 1, run)).value()));
  }
}

}  // namespace
}  // namespace lacuna
