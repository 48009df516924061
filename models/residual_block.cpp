#include "models/residual_block.h"

#include "ops/add/add.h"
#include "ops/add_dropout_layer_norm/add_dropout_layer_norm.h"
#include "ops/dropout/dropout.h"
#include "ops/gelu/gelu.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/matmul/matmul.h"
#include "ops/sparse_attention/sparse_attention.h"

namespace lacuna {
namespace {

BlockParameters block_parameters(int64_t layer, const Parameters& parameters) {
  const auto get = [&](const char* name) { return parameters[concat("blocks.", layer, '.', name)]; };
  BlockParameters p;
  p.norm_a_gain = get("norm_a.gain"), p.norm_a_bias = get("norm_a.bias");
  p.qkv_weight = get("attention.qkv.weight"), p.qkv_bias = get("attention.qkv.bias");
  p.out_weight = get("attention.out.weight"), p.out_bias = get("attention.out.bias");
  p.norm_b_gain = get("norm_b.gain"), p.norm_b_bias = get("norm_b.bias");
  p.ff_in_weight = get("ff.in.weight"), p.ff_in_bias = get("ff.in.bias");
  p.ff_out_weight = get("ff.out.weight"), p.ff_out_bias = get("ff.out.bias");
  return p;
}

}  // namespace

ResidualBlock::ResidualBlock(const ModelConfig& config, int64_t layer, const Parameters& parameters)
    : p_(block_parameters(layer, parameters)),
      pattern_(config.attention.for_layer(layer)),
      layer_(layer),
      n_heads_(config.n_heads),
      d_qk_(config.qk_width() / config.n_heads),
      dropout_(config.dropout) {}

Variable ResidualBlock::operator()(const Variable& h, const Run& run) const {
  const auto [h_in, x_a] = residual_layer_norm(h, p_.norm_a_gain, p_.norm_a_bias);
  const auto [h_a, x_b] =
      add_dropout_layer_norm(h_in, attention(x_a), dropout_, /*op=*/2 * layer_, run, p_.norm_b_gain, p_.norm_b_bias);
  return add_dropout(h_a, feed_forward(x_b), dropout_, /*op=*/2 * layer_ + 1, run);
}

Variable ResidualBlock::attention(const Variable& x) const {
  const Variable qkv = linear(x, p_.qkv_weight, p_.qkv_bias);
  return linear(sparse_attention(qkv, d_qk_, pattern_, n_heads_), p_.out_weight, p_.out_bias);
}

Variable ResidualBlock::feed_forward(const Variable& x) const {
  return linear(gelu(linear(x, p_.ff_in_weight, p_.ff_in_bias)), p_.ff_out_weight, p_.ff_out_bias);
}

Tensor ResidualBlock::decode(const Tensor& h, DecodeCache& cache) const {
  const GradientMode no_gradients(false);
  const Variable x(h);
  const Tensor x_a = layer_norm(x, p_.norm_a_gain, p_.norm_a_bias).value();
  const auto [q, k, v] = split_qkv(linear_rows(x_a, p_.qkv_weight, p_.qkv_bias), n_heads_ * d_qk_);
  cache.append(k, v);
  const Tensor o = cache.attend(q);
  const Variable h_a = x + Variable(linear_rows(o, p_.out_weight, p_.out_bias));

  const Tensor x_b = layer_norm(h_a, p_.norm_b_gain, p_.norm_b_bias).value();
  const Tensor f = gelu(Variable(linear_rows(x_b, p_.ff_in_weight, p_.ff_in_bias))).value();
  return (h_a + Variable(linear_rows(f, p_.ff_out_weight, p_.ff_out_bias))).value();
}

}  // namespace lacuna
