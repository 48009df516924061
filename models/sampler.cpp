#include "models/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"

namespace lacuna {
namespace {

/// The token at which the cumulative distribution softmax(logits / temperature) passes `u` in [0, 1); the likeliest
/// token, the first of equals, at temperature 0.
uint8_t draw(const std::vector<double>& logits, double temperature, double u) {
  check(std::all_of(logits.begin(), logits.end(), [](double x) { return std::isfinite(x); }),
        "sample: logits are not finite");
  const auto likeliest = std::max_element(logits.begin(), logits.end());
  if (temperature == 0.0) return static_cast<uint8_t>(likeliest - logits.begin());

  std::vector<double> cumulative(logits.size());
  double sum = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) cumulative[i] = sum += std::exp((logits[i] - *likeliest) / temperature);
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.end() - 1, u * sum);
  return static_cast<uint8_t>(chosen - cumulative.begin());
}

}  // namespace

Decoder::Decoder(const SparseTransformer& model, int64_t batch, int64_t length)
    : model_(model), batch_(batch), length_(length ? length : model.config().n_ctx) {
  const ModelConfig& config = model.config();
  check(batch >= 1, "Decoder: batch must be at least 1, got ", batch);
  check(length_ >= 1 && length_ <= config.n_ctx, "Decoder: length must be in 0..", config.n_ctx, ", got ", length);
  const DType dtype = model.parameters().values().dtype();
  const Device device = model.parameters().values().device();
  for (int64_t layer = 0; layer < config.n_layers; ++layer)
    caches_.emplace_back(config.attention.for_layer(layer), config.n_heads, length_, batch,
                         config.qk_width() / config.n_heads, config.d_model / config.n_heads, dtype, device);
}

Tensor Decoder::step(const Tensor& previous) {
  check(position() < length_, "Decoder: made for ", length_, " positions, all done");
  check(position() == 0 || (previous.defined() && previous.dtype() == DType::u8 && previous.shape() == Shape{batch_}),
        "Decoder: previous tokens must be u8 ", Shape{batch_});
  return model_.decode(previous, batch_, caches_);
}

int64_t Decoder::cache_bytes() const {
  return std::accumulate(caches_.begin(), caches_.end(), int64_t{0},
                         [](int64_t sum, const DecodeCache& cache) { return sum + cache.bytes(); });
}

Tensor sample(const SparseTransformer& model, const SampleOptions& options, const Tensor& prompt,
              const std::function<void(int64_t)>& progress) {
  const ModelConfig& config = model.config();
  const int64_t count = options.count, length = options.length ? options.length : config.n_ctx;
  const int64_t prompted = prompt.defined() ? prompt.numel() : 0;
  check_usage(count >= 1, "sample: count must be at least 1, got ", count);
  check_usage(length >= 1 && length <= config.n_ctx, "sample: length must be in 0..", config.n_ctx, ", got ",
              options.length);
  check_usage(options.temperature >= 0.0 && std::isfinite(options.temperature),
              "sample: temperature must be a number >= 0, got ", options.temperature);
  check_usage(prompted <= length, "sample: the prompt must fit the length of ", length, " tokens, got ", prompted);

  const Rng rng(options.seed, RandomPurpose::sampling);
  const Tensor tokens = empty({count, length}, DType::u8), previous = empty({count}, DType::u8);
  Decoder decoder(model, count, length);
  for (int64_t t = 0; t < length; ++t) {
    const std::vector<double> logits = to_vector<double>(to_dtype(decoder.step(previous), DType::f64));
    for (int64_t s = 0; s < count; ++s) {
      const double u = rng.uniform({.step = 0, .sample = s, .op = 0}, t);
      const auto row = logits.begin() + s * config.n_vocab;
      const uint8_t token =
          t < prompted ? prompt.data<uint8_t>()[t] : draw({row, row + config.n_vocab}, options.temperature, u);
      previous.data<uint8_t>()[s] = tokens.data<uint8_t>()[s * length + t] = token;
    }
    if (progress) progress(t + 1);
  }
  return tokens;
}

}  // namespace lacuna
