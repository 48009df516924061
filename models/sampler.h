#pragma once
// Drawing sequences from a model.

#include <functional>
#include <vector>

#include "models/sparse_transformer.h"

namespace lacuna {

struct SampleOptions {
  int64_t count = 1;         // sequences, drawn together as a batch
  int64_t length = 0;        // tokens of each, at most n_ctx; 0: n_ctx
  double temperature = 1.0;  // logits are divided by it; 0: always the likeliest token
  uint64_t seed = 0;
};

/// The state of incremental decoding: of the positions so far, the keys and values still in reach of a later one.
class Decoder {
 public:
  /// Makes room for `length` positions; 0: n_ctx. Throws Error when `batch` < 1 or `length` is not in 0..n_ctx.
  Decoder(const SparseTransformer& model, int64_t batch, int64_t length = 0);

  /// Logits [batch, n_vocab] of the next position; `previous` u8 [batch] holds the tokens just before it and is
  /// ignored at the first position. Equal to the training forward's logits at that position up to rounding.
  /// Throws Error after `length` positions.
  Tensor step(const Tensor& previous);

  /// Takes back the steps from `position` on, which were recorded and never ran.
  void rewind(int64_t position);

  /// Steps done.
  int64_t position() const { return position_; }

  /// The same, i64 [1] where the model is; a replay of a recorded step advances it alone.
  const Tensor& position_tensor() const { return position_tensor_; }

  /// Of the caches of all layers and sequences.
  int64_t cache_bytes() const;

 private:
  const SparseTransformer& model_;
  int64_t batch_, length_, position_ = 0;
  Tensor position_tensor_;
  std::vector<DecodeCache> caches_;  // one per layer
};

/// Samples u8 [count, length] on the model's device, and returns them on the CPU. On a GPU a step is one CUDA graph,
/// and the host looks at every 64th; `say` gets a line when it cannot be recorded (core/cuda/step_runner.h). The first
/// prompt.numel() tokens of every sequence are `prompt` (u8 [m], may be undefined). Sequence s depends only on the
/// weights, the prompt, the temperature, the seed and s, not on count. `progress` is called with the number of
/// positions done. Throws UsageError for options out of range or a prompt longer than length, and Error when logits are
/// not finite.
Tensor sample(const SparseTransformer& model, const SampleOptions& options, const Tensor& prompt = {},
              const std::function<void(int64_t)>& progress = {},
              const std::function<void(const std::string&)>& say = {});

}  // namespace lacuna
