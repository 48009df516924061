#pragma once
// The model.

#include <vector>

#include "autograd/parameters.h"
#include "models/config.h"
#include "models/residual_block.h"
#include "ops/run.h"

namespace lacuna {

/// All parameters of a model, in the order of a checkpoint, with documented names:
/// embedding.token [n_vocab, d], embedding.position.{0,1,2} [extent, d], embedding.start [d],
/// blocks.{k}.norm_a.{gain,bias}, blocks.{k}.attention.{q,k,v,out}.{weight,bias}, blocks.{k}.norm_b.{gain,bias},
/// blocks.{k}.ff.{in,out}.{weight,bias}, norm.{gain,bias}, logits.weight [n_vocab, d]. Weights are [d_out, d_in].
/// Those of q, k and v are one leaf, blocks.{k}.attention.qkv.weight, and so are their biases. Allocates nothing.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);

/// An autoregressive Transformer over bytes with sparse attention. A graph that it recorded reads its weights in
/// backward, so the model must live as long.
class SparseTransformer {
 public:
  /// Validates the configuration, allocates and initializes. Logits begin at zero, so the first loss is ln n_vocab.
  /// Activations are of `dtype`; parameters too, except that they are f32 beside bf16 and f16, with a copy in that
  /// dtype for the products, Sec. 5.6.
  SparseTransformer(const ModelConfig& config, uint64_t seed, DType dtype = DType::f32, Device device = kCpu);

  SparseTransformer(const SparseTransformer&) = delete;
  SparseTransformer& operator=(const SparseTransformer&) = delete;

  /// Logits [batch, n, n_vocab] for tokens u8 [batch, n], n <= n_ctx: those at position t depend on tokens before t.
  Variable operator()(const Tensor& tokens, const Run& run) const;

  /// Mean loss in nats over all tokens.
  Variable loss(const Tensor& tokens, const Run& run) const;

  /// Logits [batch, n_vocab] at `position`, i64 [1], whose caches, one per layer, are those of the positions before;
  /// without dropout or gradients, equal to operator()'s up to rounding. `previous` u8 [batch] holds the tokens just
  /// before it and is not looked at when it is 0. All of it, the caches too, is of the parameters' dtype: in f16 q k^T
  /// could overflow (Sec. 5.6).
  Tensor decode(const Tensor& previous, const Tensor& position, std::vector<DecodeCache>& caches) const;

  const ModelConfig& config() const { return config_; }
  const Parameters& parameters() const { return parameters_; }

 private:
  ModelConfig config_;
  DType dtype_;  // of activations
  Parameters parameters_;
  Variable token_, start_, norm_gain_, norm_bias_, logits_weight_;
  std::vector<Variable> position_;
  std::vector<ResidualBlock> blocks_;
};

}  // namespace lacuna
