#include "models/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/cuda/step_runner.h"
#include "core/rng.h"
#include "ops/categorical/categorical.h"

namespace lacuna {
Decoder::Decoder(const SparseTransformer& model, int64_t batch, int64_t length)
    : model_(model),
      batch_(batch),
      length_(length ? length : model.config().n_ctx),
      position_tensor_(zeros({1}, DType::i64, model.parameters().values().device())) {
  const ModelConfig& config = model.config();
  check(batch >= 1, "Decoder: batch must be at least 1, got ", batch);
  check(length_ >= 1 && length_ <= config.n_ctx, "Decoder: length must be in 0..", config.n_ctx, ", got ", length);
  const DType dtype = model.parameters().values().dtype();
  const Device device = model.parameters().values().device();
  for (int64_t layer = 0; layer < config.n_layers; ++layer)
    caches_.emplace_back(config.attention.for_layer(layer), config.n_heads, length_, batch,
                         config.qk_width() / config.n_heads, config.d_model / config.n_heads, dtype, device,
                         position_tensor_);
}

Tensor Decoder::step(const Tensor& previous) {
  check(position_ < length_, "Decoder: made for ", length_, " positions, all done");
  check(position_ == 0 || (previous.defined() && previous.dtype() == DType::u8 && previous.shape() == Shape{batch_}),
        "Decoder: previous tokens must be u8 ", Shape{batch_});
  const Device device = position_tensor_.device();
  const Tensor logits =
      model_.decode(previous.defined() ? previous : zeros({batch_}, DType::u8, device), position_tensor_, caches_);
  advance(position_tensor_);
  ++position_;
  return logits;
}

void Decoder::rewind(int64_t position) {
  position_ = position;
  for (DecodeCache& cache : caches_) cache.rewind(position);
}

int64_t Decoder::cache_bytes() const {
  return std::accumulate(caches_.begin(), caches_.end(), int64_t{0},
                         [](int64_t sum, const DecodeCache& cache) { return sum + cache.bytes(); });
}

Tensor sample(const SparseTransformer& model, const SampleOptions& options, const Tensor& prompt,
              const std::function<void(int64_t)>& progress, const std::function<void(const std::string&)>& say) {
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
  const Device device = model.parameters().values().device();
  const Tensor tokens = zeros({count, length}, DType::u8, device), previous = zeros({count}, DType::u8, device),
               finite = full({count}, DType::u8, 1, device),
               given = prompted > 0 ? to_device(prompt, device) : zeros({0}, DType::u8, device);
  Decoder decoder(model, count, length);
  const auto step = [&] {
    const Tensor logits = decoder.step(previous);
    draw_tokens(logits, options.temperature, rng, decoder.position_tensor(), given, tokens, previous, finite);
  };
  StepRunner runner(device, StepRunner::Recording::once, say);  // every position has the same kernels
  const int64_t checked_every = device == kCpu ? 1 : 64;  // a look at what a GPU computed waits for it
  for (int64_t t = 0; t < length; ++t) {
    runner.run(step, [&] { decoder.rewind(t); });
    if ((t + 1) % checked_every != 0 && t + 1 < length) continue;
    const std::vector<uint8_t> rows_finite = to_vector<uint8_t>(finite);
    check(std::count(rows_finite.begin(), rows_finite.end(), 0) == 0, "sample: logits are not finite");
    if (progress) progress(t + 1);
  }
  return to_device(tokens, kCpu);
}

}  // namespace lacuna
