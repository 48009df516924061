#pragma once
// A run small enough for a test.

#include "experiments/config.h"
#include "experiments/run_state.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {

inline ExperimentConfig tiny_config() {
  ExperimentConfig config;
  config.program = "enwik8";
  config.preset = "laptop";
  config.model = {.n_ctx = 12,
                  .d_model = 8,
                  .n_layers = 2,
                  .n_heads = 2,
                  .position_extents = {3, 4},
                  .attention = parse_attention("local(window=4), column(stride=4)")};
  return config;
}

/// Model, optimizer and average of a tiny run, all tensors filled with numbers of their own.
struct TinyRun {
  explicit TinyRun(uint64_t seed, const ExperimentConfig& config = tiny_config())
      : model(config.model, seed, config.train.dtype), adam(model.parameters(), {}), ema(model.parameters(), 0.9) {
    state.config = config;
    state.data_fingerprint = "tiny";
    state.step = 3;
    int64_t op = 0;
    for (const Tensor& flat : {model.parameters().values(), adam.exp_avg(), adam.exp_avg_sq(), ema.average()}) {
      ++op;
      for (const Parameters::Entry& entry : model.parameters().entries())
        for (int64_t i = entry.offset; i < entry.offset + entry.shape.numel(); ++i)
          flat.data<float>()[i] = static_cast<float>(Rng(seed, RandomPurpose::test).uniform({.op = op}, i));
    }
    model.parameters().update_rounded();
  }

  RunTensors tensors() { return {model, adam, &ema}; }

  SparseTransformer model;
  Adam adam;
  Ema ema;
  RunState state;
};

}  // namespace lacuna
