#include "models/sparse_transformer.h"

#include <cmath>

#include "autograd/checkpoint.h"
#include "ops/add/add.h"
#include "ops/embedding/embedding.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/matmul/matmul.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"

namespace lacuna {
namespace {

constexpr float kFinalNormEps = 1e-6f;  // released code; blocks have 1e-5

/// Standard deviations of the initial weights, Sec. 5.2, 5.3 and 6.
struct InitStd {
  explicit InitStd(const ModelConfig& config) : convention(config.init) {
    const auto d = static_cast<double>(config.d_model);
    const auto n_emb = static_cast<double>(config.position_extents.size());
    token = convention == InitConvention::paper ? 0.125 / std::sqrt(d) : 0.01;
    if (config.embedding_std > 0.0f) token = static_cast<double>(config.embedding_std);
    position = token / std::sqrt(n_emb);
    residual = 1.0 / std::sqrt(2.0 * static_cast<double>(config.n_layers));
  }

  double weight(int64_t d_in) const {
    return convention == InitConvention::paper ? 0.125 / std::sqrt(d_in) : std::sqrt(0.125 / static_cast<double>(d_in));
  }

  InitConvention convention;
  double token, position;
  double residual;  // factor of the two output matrices: keeps the scale of the residual stream whatever the depth
};

}  // namespace

std::vector<ParameterSpec> parameter_specs(const ModelConfig& config) {
  validate(config);
  const int64_t d = config.d_model, d_qk = config.qk_width(), d_ff = config.ff_width();
  const InitStd init_std(config);
  std::vector<ParameterSpec> specs;
  const auto random = [&](const std::string& name, const Shape& shape, double std) -> ParameterSpec& {
    return specs.emplace_back(ParameterSpec{name, shape, std, 0.0});
  };
  const auto constant = [&](const std::string& name, const Shape& shape, double value) -> ParameterSpec& {
    return specs.emplace_back(ParameterSpec{name, shape, 0.0, value});
  };
  const auto linear = [&](const std::string& name, int64_t d_in, int64_t d_out, double factor,
                          const std::string& leaf = {}) {
    ParameterSpec& weight = random(name + ".weight", {d_out, d_in}, factor * init_std.weight(d_in));
    if (!leaf.empty()) weight.part_of = leaf + ".weight";
    ParameterSpec& bias = constant(name + ".bias", {d_out}, 0.0);
    if (!leaf.empty()) bias.part_of = leaf + ".bias";
  };
  const auto norm = [&](const std::string& name) {
    constant(name + ".gain", {d}, 1.0);
    constant(name + ".bias", {d}, 0.0);
  };

  random("embedding.token", {config.n_vocab, d}, init_std.token);
  for (size_t i = 0; i < config.position_extents.size(); ++i)
    random(concat("embedding.position.", i), {config.position_extents[i], d}, init_std.position);
  for (ParameterSpec& table : specs) table.waves = config.embedding_init == EmbeddingInit::waves;
  random("embedding.start", {d}, init_std.token);
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string block = concat("blocks.", layer, '.');
    norm(block + "norm_a");
    for (const auto& [part, width] : {std::pair("q", d_qk), std::pair("k", d_qk), std::pair("v", d)})
      linear(block + "attention." + part, d, width, 1.0, /*leaf=*/block + "attention.qkv");
    linear(block + "attention.out", d, d, init_std.residual);
    norm(block + "norm_b");
    linear(block + "ff.in", d, d_ff, 1.0);
    linear(block + "ff.out", d_ff, d, init_std.residual);
  }
  norm("norm");
  constant("logits.weight", {config.n_vocab, d}, 0.0);
  return specs;
}

SparseTransformer::SparseTransformer(const ModelConfig& config, uint64_t seed, DType dtype, Device device)
    : config_(config),
      dtype_(dtype),
      parameters_(parameter_specs(config), seed, accumulation_dtype(dtype), device, /*rounded=*/dtype),
      token_(parameters_["embedding.token"]),
      start_(parameters_["embedding.start"]),
      norm_gain_(parameters_["norm.gain"]),
      norm_bias_(parameters_["norm.bias"]),
      logits_weight_(parameters_["logits.weight"]) {
  for (size_t i = 0; i < config.position_extents.size(); ++i)
    position_.push_back(parameters_[concat("embedding.position.", i)]);
  for (int64_t layer = 0; layer < config.n_layers; ++layer) blocks_.emplace_back(config, layer, parameters_);
}

Variable SparseTransformer::operator()(const Tensor& tokens, const Run& run) const {
  check(tokens.rank() == 2 && tokens.dim(1) <= config_.n_ctx,
        "SparseTransformer: tokens must be [batch, n] with n <= ", config_.n_ctx, ", got ", tokens.shape());
#ifndef NDEBUG
  if (token_.device() == kCpu) parameters_.check_rounded();
#endif
  Variable h = embedding(tokens, token_, position_, start_, dtype_);  // [batch, n, d_model]
  for (const ResidualBlock& block : blocks_) {
    if (config_.recompute && gradients_enabled())  // Sec. 5.4: keep h, recompute the block in backward
      h = checkpoint([&block, run](const Variable& h_in) { return block(h_in, run); }, h);
    else
      h = block(h, run);
  }
  return linear(layer_norm(h, norm_gain_, norm_bias_, kFinalNormEps), logits_weight_);  // [batch, n, n_vocab]
}

Variable SparseTransformer::loss(const Tensor& tokens, const Run& run) const {
  return softmax_cross_entropy((*this)(tokens, run), tokens);
}

Tensor SparseTransformer::decode(const Tensor& previous, const Tensor& position,
                                 std::vector<DecodeCache>& caches) const {
  const GradientMode no_gradients(false);
  std::vector<Tensor> tables;
  for (const Variable& table : position_) tables.push_back(table.value());
  Tensor h = embedding_at(previous, position, token_.value(), tables, start_.value());
  for (size_t layer = 0; layer < blocks_.size(); ++layer) h = blocks_[layer].decode(h, caches[layer]);
  return linear_rows(layer_norm(Variable(h), norm_gain_, norm_bias_, kFinalNormEps).value(), logits_weight_);
}

}  // namespace lacuna
