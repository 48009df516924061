#include "experiments/dense_rival.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>

#include "core/rng.h"
#include "ops/sparse_attention/sparse_attention.h"

namespace lacuna {
namespace {

const LayerPattern& dense() {
  static const LayerPattern pattern{{{Dense{}}}};
  return pattern;
}

Tensor random_tensor(const Shape& shape, DType dtype, int64_t id) {
  std::vector<double> numbers(static_cast<size_t>(shape.numel()));
  const Rng rng(/*seed=*/1, RandomPurpose::test);
  for (size_t e = 0; e < numbers.size(); ++e)
    numbers[e] = 2 * rng.uniform({.op = id}, static_cast<int64_t>(e)) - 1;
  return to_dtype(from_vector(numbers, shape), dtype);
}

}  // namespace

std::optional<SlowerThanDense> slower_than_dense(const ModelConfig& config, const TimeAttention& time) {
  const std::vector<LayerPattern>& layers = config.attention.layers;
  if (std::all_of(layers.begin(), layers.end(), [](const LayerPattern& layer) { return layer == dense(); })) return {};
  std::map<std::string, double> seconds;  // of each kind of layer
  double pattern_s = 0;
  for (int64_t r = 0; r < config.n_layers; ++r) {
    const LayerPattern& layer = config.attention.for_layer(r);
    const auto [found, missing] = seconds.try_emplace(to_string(AttentionPattern{{layer}}));
    if (missing) found->second = time(layer, config.n_ctx);
    pattern_s += found->second / static_cast<double>(config.n_layers);
  }
  for (int64_t n = std::min<int64_t>(128, config.n_ctx);; n = std::min(2 * n, config.n_ctx)) {
    const double dense_s = time(dense(), n);
    if (dense_s >= pattern_s) return {};
    if (n == config.n_ctx) return SlowerThanDense{pattern_s, dense_s};
  }
}

TimeAttention time_attention_of(const ModelConfig& config, DType dtype) {
  return [config, dtype](const LayerPattern& pattern, int64_t n) {
    constexpr int kLeastRuns = 2, kMostRuns = 5;
    constexpr double kEnough = 0.1;  // seconds
    const Variable q(random_tensor({1, n, config.qk_width()}, dtype, 0), true),
        k(random_tensor({1, n, config.qk_width()}, dtype, 1), true),
        v(random_tensor({1, n, config.d_model}, dtype, 2), true);
    const Tensor d_o = random_tensor({1, n, config.d_model}, dtype, 3);
    double best = std::numeric_limits<double>::infinity(), sum = 0;
    for (int run = 0; run < kLeastRuns || (run < kMostRuns && sum < kEnough); ++run) {
      const auto begin = std::chrono::steady_clock::now();
      backward(sparse_attention(q, k, v, pattern, config.n_heads), d_o);
      const double taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      best = std::min(best, taken);
      sum += taken;
      for (const Variable& x : {q, k, v}) x.clear_grad();
    }
    return best;
  };
}

}  // namespace lacuna
