#pragma once
// One layer of the model.

#include "autograd/parameters.h"
#include "models/config.h"
#include "ops/run.h"
#include "ops/sparse_attention/decode.h"

namespace lacuna {

/// Weights of one residual block; names of leaves as in parameter_specs without the "blocks.{k}." prefix.
struct BlockParameters {
  Variable norm_a_gain, norm_a_bias;
  Variable qkv_weight, qkv_bias, out_weight, out_bias;
  Variable norm_b_gain, norm_b_bias;
  Variable ff_in_weight, ff_in_bias, ff_out_weight, ff_out_bias;
};

/// One residual block, Sec. 5.2 (eq. 11-13): h + a + b with a = dropout(attention(norm(h))),
/// b = dropout(ff(norm(h + a))).
class ResidualBlock {
 public:
  ResidualBlock(const ModelConfig& config, int64_t layer, const Parameters& parameters);

  /// [batch, n, d_model] -> the same.
  Variable operator()(const Variable& h, const Run& run) const;

  /// The same for the next position of this layer's cache, h [batch, d_model], without dropout or gradients.
  Tensor decode(const Tensor& h, DecodeCache& cache) const;

 private:
  Variable attention(const Variable& x) const;
  Variable feed_forward(const Variable& x) const;

  BlockParameters p_;
  LayerPattern pattern_;
  int64_t layer_, n_heads_, d_qk_;  // d_qk of a head
  float dropout_;
};

}  // namespace lacuna
