#include "models/cost.h"

#include <algorithm>

#include "autograd/parameters.h"
#include "models/sparse_transformer.h"
#include "ops/sparse_attention/decode.h"

namespace lacuna {
namespace {

constexpr int64_t kTileScratch = 4 << 20;  // bytes; tiles of all threads

// Bytes per token of what the backward functions of a block capture. In the order of residual_block.cpp: the norm_a
// that qkv reads; q, k, v and o; the h + a that norm_b reads; the norm_b that ff.in reads; the two sides of gelu;
// the sum that the next block reads; and the statistics of two norms and of the softmax.
int64_t block_bytes(const ModelConfig& config, DType dtype) {
  return size_of(dtype) * (6 * config.d_model + 2 * config.qk_width() + 2 * config.ff_width()) +
         size_of(accumulation_dtype(dtype)) * (4 + config.n_heads);
}

// Elements per token of the f32 copies that an operation in bf16 or f16 makes of what it reads and writes: gelu's
// backward, that of the loss, that of attention, or that of a norm with what is beside it.
int64_t widened_width(const ModelConfig& config) {
  return std::max(
      {3 * config.ff_width(), 2 * config.n_vocab, 3 * config.d_model + 2 * config.qk_width(), 5 * config.d_model});
}

}  // namespace

int64_t attention_pairs(const PatternUnion& patterns, int64_t n) {
  int64_t pairs = 0;
  for (const Part& part : parts_of(patterns))
    for (int64_t i = 0; i < n; ++i) {
      const int64_t group = i % part.view.residues;
      const Range keys = part.keys_of(group, i);
      pairs += keys.end - keys.begin;
      for (int64_t t = keys.begin; t < keys.end && !part.scattered_before.empty(); ++t)
        pairs -= part.skips(i, part.view.keys(group).position(t));
    }
  return pairs;
}

ComputeCost compute_cost(const ModelConfig& config) {
  ComputeCost cost;
  cost.parameters = count_parameters(parameter_specs(config));

  std::map<std::string, int64_t> known;  // pairs by layer pattern: most layers and heads repeat
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const LayerPattern& pattern = config.attention.for_layer(layer);
    const auto [entry, is_new] = known.try_emplace(to_string(AttentionPattern{{pattern}}), 0);
    for (int64_t head = 0; is_new && head < config.n_heads; ++head)
      entry->second += attention_pairs(pattern.for_head(head), config.n_ctx);
    cost.attention_pairs += entry->second;
  }

  const auto n = static_cast<double>(config.n_ctx), d = static_cast<double>(config.d_model);
  const auto layers = static_cast<double>(config.n_layers), heads = static_cast<double>(config.n_heads);
  const auto d_qk = static_cast<double>(config.qk_width()), d_ff = static_cast<double>(config.ff_width());
  const double blocks = 2.0 * n * layers * (2.0 * d * d_qk + 2.0 * d * d + 2.0 * d * d_ff);
  cost.forward_linear = blocks + 2.0 * n * d * static_cast<double>(config.n_vocab);
  cost.forward_attention = 2.0 * (d_qk + d) / heads * static_cast<double>(cost.attention_pairs);
  cost.training = 3.0 * cost.forward() + (config.recompute ? blocks + cost.forward_attention : 0.0);
  return cost;
}

std::array<int64_t, kMemoryCategories> training_bytes(const ModelConfig& config, const TrainingSetup& setup) {
  const int64_t element = size_of(setup.dtype), wide = size_of(accumulation_dtype(setup.dtype));
  const int64_t tokens = setup.batch * config.n_ctx, flat = wide * flat_size(parameter_specs(config));

  // What is held at the worst moments of a step. In the loss: logits, which become their gradient, over the inputs of
  // all blocks and the final norm. In the last block: at the end of its forward pass (which recomputation repeats) the
  // branch that is added; in the backward pass of its feed-forward layer the gradient of the hidden layer, and of the
  // branch where dropout makes it another than that of the sum; in that of its attention the gradients of q, k, v, o,
  // of the block's input and output.
  const int64_t d = element * config.d_model, d_qk = element * config.qk_width();
  const int64_t inside = block_bytes(config, setup.dtype);
  const int64_t below = (config.recompute ? d : inside) * config.n_layers + d;
  const int64_t last = config.recompute ? inside : 0;
  const int64_t d_branch = config.dropout > 0.0f ? d : 0;
  const int64_t worst =
      std::max({below + d + element * config.n_vocab, below + last + d,
                below + last + element * config.ff_width() + d_branch, below + last - inside + 7 * d + 4 * d_qk});

  std::array<int64_t, kMemoryCategories> bytes{};
  bytes[static_cast<size_t>(MemoryCategory::parameters)] = flat + (is_16_bit(setup.dtype) ? element * flat / wide : 0);
  bytes[static_cast<size_t>(MemoryCategory::gradients)] = flat;
  bytes[static_cast<size_t>(MemoryCategory::optimizer)] = (setup.ema ? 3 : 2) * flat;
  bytes[static_cast<size_t>(MemoryCategory::activations)] = tokens * worst;
  bytes[static_cast<size_t>(MemoryCategory::workspace)] = tokens * d + kTileScratch;
  if (is_16_bit(setup.dtype))
    bytes[static_cast<size_t>(MemoryCategory::workspace)] += wide * tokens * widened_width(config);
  return bytes;
}

std::vector<DecodeCost> decode_cost(const ModelConfig& config, DType dtype) {
  const int64_t row_bytes = size_of(dtype) * (config.qk_width() + config.d_model) / config.n_heads;
  std::vector<DecodeCost> kinds;
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const LayerPattern& pattern = config.attention.for_layer(layer);
    const std::string name = to_string(AttentionPattern{{pattern}});
    auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const DecodeCost& k) { return k.pattern == name; });
    if (kind == kinds.end()) kind = kinds.insert(kind, {name});
    ++kind->layers;
    kind->bytes += row_bytes * DecodeCache::rows_of(pattern, config.n_heads, config.n_ctx);
  }
  return kinds;
}

int64_t dense_decode_bytes(const ModelConfig& config, DType dtype) {
  return size_of(dtype) * (config.qk_width() + config.d_model) * config.n_ctx * config.n_layers;
}

}  // namespace lacuna
