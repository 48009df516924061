#include "models/sparse_transformer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "autograd/gradcheck.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"
#include "tests/models/tiny_models.h"

namespace lacuna {
namespace {

ModelConfig image_config(int64_t side, int64_t n_layers, int64_t d_model, int64_t n_heads, int64_t stride) {
  ModelConfig config;
  config.n_ctx = side * side * 3;
  config.d_model = d_model;
  config.n_layers = n_layers;
  config.n_heads = n_heads;
  config.position_extents = {side, side, 3};
  config.attention = parse_attention(concat("column(stride=", stride, "), local(window=", stride, ")"));
  return config;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

TEST_CASE("sparse_transformer: the paper's models have its numbers of parameters") {
  ModelConfig cifar = image_config(32, 128, 256, 2, 96);
  cifar.d_qk = 128;
  cifar.d_ff = 512;
  CHECK(count_parameters(parameter_specs(cifar)) == 59'196'928);
  cifar.n_layers = 32;
  CHECK(count_parameters(parameter_specs(cifar)) == 14'910'976);

  ModelConfig enwik8;
  enwik8.n_ctx = 12288;
  enwik8.d_model = 512;
  enwik8.n_layers = 30;
  enwik8.n_heads = 8;
  enwik8.position_extents = {96, 128};
  enwik8.attention = parse_attention("fixed_block(stride=128) + fixed_summary(stride=128, c=32, sub_blocks=4)");
  CHECK(count_parameters(parameter_specs(enwik8)) == 94'949'888);

  CHECK(count_parameters(parameter_specs(image_config(64, 48, 512, 16, 128))) == 151'645'184);
  CHECK(count_parameters(parameter_specs(image_config(64, 96, 512, 16, 128))) == 302'959'616);
}

TEST_CASE("sparse_transformer: parameters have the documented names and shapes") {
  ModelConfig config = tiny_config("dense");
  config.n_layers = 1;
  std::string text;
  for (const ParameterSpec& spec : parameter_specs(config)) text += concat(spec.name, ' ', spec.shape, '\n');
  CHECK(text ==
        "embedding.token [11, 16]\nembedding.position.0 [5, 16]\nembedding.position.1 [5, 16]\nembedding.start [16]\n"
        "blocks.0.norm_a.gain [16]\nblocks.0.norm_a.bias [16]\n"
        "blocks.0.attention.q.weight [8, 16]\nblocks.0.attention.q.bias [8]\n"
        "blocks.0.attention.k.weight [8, 16]\nblocks.0.attention.k.bias [8]\n"
        "blocks.0.attention.v.weight [16, 16]\nblocks.0.attention.v.bias [16]\n"
        "blocks.0.attention.out.weight [16, 16]\nblocks.0.attention.out.bias [16]\n"
        "blocks.0.norm_b.gain [16]\nblocks.0.norm_b.bias [16]\n"
        "blocks.0.ff.in.weight [24, 16]\nblocks.0.ff.in.bias [24]\n"
        "blocks.0.ff.out.weight [16, 24]\nblocks.0.ff.out.bias [16]\n"
        "norm.gain [16]\nnorm.bias [16]\nlogits.weight [11, 16]\n");
}

TEST_CASE("sparse_transformer: initial weights have the mean and deviation of either convention") {
  for (const InitConvention convention : {InitConvention::released_code, InitConvention::paper}) {
    const bool paper = convention == InitConvention::paper;
    ModelConfig config = image_config(32, 2, 64, 2, 96);
    config.d_ff = 256;
    config.init = convention;
    const SparseTransformer model(config, /*seed=*/3);

    // Sec. 5.2, 5.3 and 6 of the paper. d_in = 64 but for ff.out (256); two layers: 1 / sqrt(2 N) = 1 / 2.
    const double weight_64 = paper ? 0.125 / 8.0 : std::sqrt(0.125 / 64.0);
    const double weight_256 = paper ? 0.125 / 16.0 : std::sqrt(0.125 / 256.0);
    const double token = paper ? 0.125 / 8.0 : 0.01;
    const std::vector<std::pair<std::string, double>> expected{
        {"embedding.token", token},
        {"embedding.position.0", token / std::sqrt(3.0)},
        {"embedding.position.2", token / std::sqrt(3.0)},
        {"embedding.start", token},
        {"blocks.0.attention.q.weight", weight_64},
        {"blocks.1.attention.k.weight", weight_64},
        {"blocks.1.attention.v.weight", weight_64},
        {"blocks.0.attention.out.weight", weight_64 / 2.0},
        {"blocks.0.ff.in.weight", weight_64},
        {"blocks.1.ff.out.weight", weight_256 / 2.0},
    };
    for (const auto& named_std : expected) {
      const std::string& name = named_std.first;
      const double std = named_std.second;
      CAPTURE(name);
      const std::vector<double> values = elements(model.parameters()[name].value());
      const auto count = static_cast<double>(values.size());
      double sum = 0.0, squares = 0.0;
      for (const double x : values) sum += x, squares += x * x;
      CHECK(std::abs(sum / count) < 5.0 * std / std::sqrt(count));
      CHECK(std::abs(std::sqrt(squares / count) / std - 1.0) < 5.0 / std::sqrt(2.0 * count));
    }
    for (const Parameters::Entry& entry : model.parameters().entries()) {
      CAPTURE(entry.name);
      const bool is_zero = entry.name.ends_with(".bias") || entry.name == "logits.weight";
      const bool is_one = entry.name.ends_with(".gain");
      const std::vector<double> values = elements(entry.variable.value());
      if (is_zero || is_one)
        CHECK(std::all_of(values.begin(), values.end(), [&](double x) { return x == (is_one ? 1.0 : 0.0); }));
      else
        CHECK(std::any_of(values.begin(), values.end(), [](double x) { return x != 0.0; }));
    }
  }
}

TEST_CASE("sparse_transformer: tables that begin as waves have their deviation, and neighbouring rows alike") {
  ModelConfig config = image_config(32, 2, 64, 2, 96);
  config.embedding_init = EmbeddingInit::waves;
  config.embedding_std = 0.5f;
  const SparseTransformer model(config, /*seed=*/3);
  const std::vector<std::pair<std::string, double>> expected{{"embedding.token", 0.5},
                                                             {"embedding.position.0", 0.5 / std::sqrt(3.0)}};
  for (const auto& named_std : expected) {
    const std::string& name = named_std.first;
    const double std = named_std.second;
    CAPTURE(name);
    const Tensor& table = model.parameters()[name].value();
    const std::vector<double> x = elements(table);
    const int64_t rows = table.dim(0), d = table.dim(1);
    double squares = 0.0, steps = 0.0;
    for (size_t i = 0; i < x.size(); ++i) squares += x[i] * x[i];
    for (size_t i = 0; i + static_cast<size_t>(d) < x.size(); ++i)
      steps += (x[i + static_cast<size_t>(d)] - x[i]) * (x[i + static_cast<size_t>(d)] - x[i]);
    const double variance = squares / static_cast<double>(rows * d), step = steps / static_cast<double>((rows - 1) * d);
    CHECK(std::sqrt(variance) == doctest::Approx(std).epsilon(0.15));  // 64 columns of random phases
    CHECK(step < 2.0 * variance);                                        // of independent rows it is 2 variances
    if (rows == 256) CHECK(step < 0.2 * variance);
  }
  const std::vector<double> start = elements(model.parameters()["embedding.start"].value());
  CHECK(std::any_of(start.begin(), start.end(), [](double v) { return v != 0.0; }));
}

TEST_CASE("sparse_transformer: the first loss is 8 bits per dim") {
  ModelConfig config = tiny_config("local(window=4) + column(stride=4)");
  config.n_vocab = 256;
  for (const DType dtype : {DType::f32, DType::f64}) {
    const SparseTransformer model(config, /*seed=*/1, dtype);
    const double nats = elements(model.loss(random_tokens(2, 23, 256), {}).value())[0];
    CHECK(std::abs(nats / std::numbers::ln2 - 8.0) <= (dtype == DType::f32 ? 8.0 * 0x1p-23 : 8.0 * 0x1p-52));
  }
}

TEST_CASE("sparse_transformer: a token changes no logit at or before its position, and some after") {
  for (const std::string& attention : kPatterns) {
    CAPTURE(attention);
    const SparseTransformer model(tiny_config(attention), /*seed=*/1);
    perturb(model);
    const GradientMode no_gradients(false);
    const Tensor tokens = random_tokens(1, 23, 11);
    const Tensor before = model(tokens, {}).value().reshape({23, 11});
    for (int64_t i = 0; i < 23; ++i) {
      const Tensor changed = clone(tokens);
      changed.data<uint8_t>()[i] = static_cast<uint8_t>((changed.data<uint8_t>()[i] + 1) % 11);
      const Tensor after = model(changed, {}).value().reshape({23, 11});
      CHECK(same_bits(after.slice(0, i + 1), before.slice(0, i + 1)));
      if (i + 1 < 23) CHECK_FALSE(same_bits(after.slice(i + 1, i + 2), before.slice(i + 1, i + 2)));
    }
  }
}

TEST_CASE("sparse_transformer: the first n positions of a longer context are those of a shorter sequence") {
  for (const std::string& attention : kPatterns) {
    CAPTURE(attention);
    const SparseTransformer model(tiny_config(attention), /*seed=*/1, DType::f64);
    perturb(model);
    const Tensor tokens = random_tokens(1, 23, 11);
    const Tensor whole = model(tokens, {}).value().reshape({23, 11});
    const Tensor part = model(clone(tokens.reshape({23}).slice(0, 9)).reshape({1, 9}), {}).value();
    const std::vector<double> expected = elements(whole.slice(0, 9)), got = elements(part);
    for (size_t e = 0; e < got.size(); ++e) CHECK(got[e] == doctest::Approx(expected[e]).epsilon(1e-12));
  }
}

TEST_CASE("sparse_transformer: recomputation gives the same bits, with dropout") {
  const Run run{.training = true, .seed = 5, .step = 3, .first_sample = 4};
  const Tensor tokens = random_tokens(3, 23, 11);
  for (const std::string& attention : kPatterns) {
    CAPTURE(attention);
    ModelConfig config = tiny_config(attention);
    config.dropout = 0.3f;
    Tensor loss[2], gradients[2];
    for (const bool recompute : {false, true}) {
      config.recompute = recompute;
      const SparseTransformer model(config, /*seed=*/1);
      perturb(model);
      const Variable l = model.loss(tokens, run);
      backward(l);
      loss[recompute] = l.value();
      gradients[recompute] = clone(model.parameters().gradients());
    }
    CHECK(same_bits(loss[0], loss[1]));
    CHECK(same_bits(gradients[0], gradients[1]));
    const std::vector<double> g = elements(gradients[0]);
    CHECK(std::any_of(g.begin(), g.end(), [](double x) { return x != 0.0; }));
  }
}

TEST_CASE("sparse_transformer: dropout acts when training alone, and by the step") {
  ModelConfig config = tiny_config("dense");
  config.dropout = 0.3f;
  const SparseTransformer model(config, /*seed=*/1);
  perturb(model);
  const Tensor tokens = random_tokens(2, 23, 11);
  const auto logits = [&](const Run& run) { return model(tokens, run).value(); };
  const Tensor evaluated = logits({}), first = logits({.training = true, .step = 1});
  CHECK(same_bits(evaluated, logits({.step = 1})));
  CHECK(same_bits(first, logits({.training = true, .step = 1})));
  CHECK_FALSE(same_bits(first, evaluated));
  CHECK_FALSE(same_bits(first, logits({.training = true, .step = 2})));
}

TEST_CASE("sparse_transformer: gradients of all parameters match finite differences") {
  for (const char* attention : {"local(window=3) + column(stride=3)",
                                "fixed_block(stride=4) | fixed_summary(stride=4, c=1)", "column(stride=3), dense"}) {
    CAPTURE(attention);
    ModelConfig config = tiny_config(attention);
    config.n_vocab = 5;
    config.n_ctx = 9;
    config.d_model = 4;
    config.n_heads = 2;
    config.d_qk = 2;
    config.d_ff = 6;
    config.n_layers = 2;
    config.position_extents = {3, 3};
    config.dropout = 0.2f;
    const SparseTransformer model(config, /*seed=*/1, DType::f64);
    perturb(model);
    std::vector<Variable> inputs;
    for (const Parameters::Entry& entry : model.parameters().entries()) inputs.push_back(entry.variable);
    const Tensor tokens = random_tokens(2, 9, 5);
    const Run run{.training = true, .seed = 2};
    expect_gradients(inputs, [&] { return model.loss(tokens, run); }, {.eps = 1e-5, .rtol = 1e-7, .atol = 1e-9});
    expect_gradients(inputs, [&] { return model(tokens, run); }, {.eps = 1e-5, .rtol = 1e-7, .atol = 1e-8});
  }
}

TEST_CASE("sparse_transformer: tokens longer than the context are refused") {
  const SparseTransformer model(tiny_config("dense"), 1);
  CHECK_THROWS_WITH_AS(model(random_tokens(1, 24, 11), {}),
                       "SparseTransformer: tokens must be [batch, n] with n <= 23, got [1, 24]", Error);
  CHECK_THROWS_AS(SparseTransformer(ModelConfig{}, 1), UsageError);
}

}  // namespace
}  // namespace lacuna
