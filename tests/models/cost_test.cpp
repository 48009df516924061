#include "models/cost.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include "models/sampler.h"
#include "models/sparse_transformer.h"
#include "optim/adam.h"
#include "optim/ema.h"
#include "tests/models/tiny_models.h"

namespace lacuna {
namespace {

Pattern random_pattern() {
  switch (*rc::gen::inRange(0, 5)) {
    case 0: return Dense{};
    case 1: return Local{*rc::gen::inRange<int64_t>(1, 40)};
    case 2: return Column{*rc::gen::inRange<int64_t>(1, 40)};
    case 3: return FixedBlock{*rc::gen::inRange<int64_t>(1, 40)};
    default: {
      const int64_t stride = *rc::gen::inRange<int64_t>(1, 20), c = *rc::gen::inRange<int64_t>(1, stride + 1);
      return FixedSummary{stride, c, stride / c, *rc::gen::inRange<int64_t>(0, stride / c)};
    }
  }
}

TEST_CASE("cost: attention pairs are those of the predicate") {
  CHECK(rc::check([] {
    const int64_t n = *rc::gen::inRange<int64_t>(1, 70);
    PatternUnion patterns;
    for (int count = *rc::gen::inRange(1, 4); count > 0; --count) patterns.push_back(random_pattern());
    int64_t expected = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) expected += attends(patterns, i, j);
    RC_ASSERT(attention_pairs(patterns, n) == expected);
  }));
}

// By hand: 2 FLOP per multiplication of the matrices of Sec. 5.2, at the sizes of Sec. 7.
TEST_CASE("cost: the paper's models") {
  ModelConfig cifar;
  cifar.n_ctx = 3072;
  cifar.d_model = 256;
  cifar.n_layers = 128;
  cifar.n_heads = 2;
  cifar.d_qk = 128;
  cifar.d_ff = 512;
  cifar.position_extents = {32, 32, 3};
  cifar.attention = parse_attention("dense");
  const ComputeCost dense = compute_cost(cifar);
  CHECK(dense.parameters == 59'196'928);
  CHECK(dense.attention_pairs == int64_t{128} * 2 * 3072 * 3073 / 2);
  CHECK(dense.forward_linear == doctest::Approx(0.361e12).epsilon(2e-3));
  CHECK(dense.forward_attention == doctest::Approx(0.464e12).epsilon(2e-3));
  CHECK(dense.training == doctest::Approx(3.3e12).epsilon(5e-3));
  cifar.recompute = false;
  CHECK(compute_cost(cifar).training == 3.0 * dense.forward());

  cifar.attention = parse_attention("column(stride=96), local(window=96), local(window=96), local(window=96)");
  CHECK(static_cast<double>(compute_cost(cifar).attention_pairs) / (128 * 2 * 3072) ==
        doctest::Approx(75).epsilon(5e-3));

  const PatternUnion fixed =
      parse_attention("fixed_block(stride=128) + fixed_summary(stride=128, c=32)").layers[0].for_head(0);
  CHECK(static_cast<double>(attention_pairs(fixed, 12288)) / 12288 == doctest::Approx(1584).epsilon(0.025));
}

struct Measured {
  MemoryStats before, after;
  int64_t peak(MemoryCategory category) const {
    return after.peak[static_cast<size_t>(category)] - before.current[static_cast<size_t>(category)];
  }
};

Measured measure_training_step(const ModelConfig& config, const TrainingSetup& setup) {
  const Tensor tokens = random_tokens(setup.batch, config.n_ctx, config.n_vocab);
  Allocator& allocator = Allocator::of(kCpu);
  allocator.reset_peak();
  Measured measured;
  measured.before = allocator.stats();
  const SparseTransformer model(config, /*seed=*/1, setup.dtype);
  Adam adam(model.parameters(), {});
  Ema ema(model.parameters(), 0.999);
  backward(model.loss(tokens, {.training = true}));
  adam.step(0.1);
  ema.update();
  measured.after = allocator.stats();
  return measured;
}

TEST_CASE("cost: predicted bytes are those that a training step takes") {
  for (const auto& setting : {std::pair(true, DType::f32), {false, DType::f32}, {false, DType::bf16}})
    for (const float dropout : {0.0f, 0.25f})
      for (const int64_t n_vocab : {16, 256}) {  // the peak is in a block, or in the loss
        const bool recompute = setting.first;  // names of their own, as CAPTURE's lambda takes no structured binding
        const DType dtype = setting.second;
        ModelConfig config = tiny_config("local(window=16) + column(stride=8)");
        config.n_vocab = n_vocab;
        config.n_ctx = 128;
        config.d_model = n_vocab == 16 ? 64 : 32;
        config.d_qk = config.d_ff = config.d_model;
        config.n_layers = 4;
        config.position_extents = {16, 8};
        config.dropout = dropout;
        config.recompute = recompute;
        const TrainingSetup setup{.batch = 2, .dtype = dtype};
        const auto predicted = training_bytes(config, setup);
        const Measured measured = measure_training_step(config, setup);
        CAPTURE(recompute);
        CAPTURE(name_of(dtype));
        CAPTURE(dropout);
        CAPTURE(n_vocab);
        for (const MemoryCategory category : {MemoryCategory::parameters, MemoryCategory::gradients,
                                              MemoryCategory::optimizer, MemoryCategory::activations}) {
          CAPTURE(name_of(category));
          // The allocator rounds a request up by at most an eighth.
          const double ratio = static_cast<double>(measured.peak(category)) /
                               static_cast<double>(predicted[static_cast<size_t>(category)]);
          CHECK(ratio >= 0.97);
          CHECK(ratio <= 1.125);
        }
        CHECK(measured.peak(MemoryCategory::workspace) <= predicted[static_cast<size_t>(MemoryCategory::workspace)]);
      }
}

TEST_CASE("cost: predicted bytes of the decode cache are those of a decoder, for every pattern") {
  for (const DType dtype : {DType::f32, DType::f64})
    for (const std::string& attention : kPatterns) {
      CAPTURE(attention);
      const ModelConfig config = tiny_config(attention);
      int64_t bytes = 0, layers = 0;
      for (const DecodeCost& kind : decode_cost(config, dtype)) bytes += kind.bytes, layers += kind.layers;
      CHECK(layers == config.n_layers);
      const SparseTransformer model(config, 1, dtype);
      CHECK(bytes == Decoder(model, 1).cache_bytes());
      CHECK(3 * bytes == Decoder(model, 3).cache_bytes());
      if (attention == "dense") CHECK(bytes == dense_decode_bytes(config, dtype));
    }
}

TEST_CASE("cost: the decode cache by kind of layer") {
  ModelConfig config = tiny_config("column(stride=4), local(window=4), local(window=5), local(window=4)");
  config.n_ctx = 24;
  config.n_layers = 7;
  const std::vector<DecodeCost> kinds = decode_cost(config, DType::f32);
  REQUIRE(kinds.size() == 3);
  const int64_t position = 4 * (8 + 16);  // bytes of a key and a value over all heads
  CHECK(kinds[0].pattern == "column(stride=4)");
  CHECK(kinds[0].layers == 2);
  CHECK(kinds[0].bytes == 2 * 24 * position);
  CHECK(kinds[1].pattern == "local(window=4)");
  CHECK(kinds[1].layers == 3);
  CHECK(kinds[1].bytes == 3 * 4 * position);
  CHECK(kinds[2].bytes == 2 * 5 * position);
  CHECK(dense_decode_bytes(config, DType::f32) == 7 * 24 * position);
}

}  // namespace
}  // namespace lacuna
