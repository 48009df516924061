#pragma once
// What a run is: its model, its recipe, its data; and how a person writes that down.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "models/config.h"

namespace lacuna {

/// How a model is trained, Sec. 5.6 and 6 of the paper.
struct TrainConfig {
  int64_t steps = 1000;     // optimizer steps; the cosine ends here
  int64_t batch = 16;       // sequences per optimizer step
  int64_t micro_batch = 0;  // sequences per forward and backward pass, whose gradients add up; 0: the whole batch
  double lr = 5e-4;         // the highest learning rate
  int64_t warmup_steps = 5000;
  double clip_norm = 1.0;
  double weight_decay = 0.01;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double ema_decay = 0.999;  // of the averaged weights that are evaluated and sampled; 0: no average
  uint64_t seed = 1;
  DType dtype = DType::f32;

  int64_t eval_every = 1000;  // steps between evaluations on the validation split
  int64_t eval_windows = 0;   // sequences of the validation split to evaluate; 0: all
  int64_t test_windows = 0;   // sequences of the test split to evaluate at the end; 0: all
  int64_t checkpoint_every = 1000;
  int64_t keep = 3;           // newest checkpoints to keep, beside the best one
  int64_t sample_count = 4;   // sequences to draw at the end
  int64_t sample_length = 0;  // tokens of each; 0: n_ctx
  double temperature = 1.0;
};

/// Everything that decides what a run computes.
struct ExperimentConfig {
  std::string program, preset;
  ModelConfig model;
  TrainConfig train;
  std::string data_path = {};  // empty: the program's default
};

/// A value as configuration files write it.
using ConfigValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>>;

/// What happens when a run is resumed with another value of a key.
enum class OnResume : uint8_t {
  refuse,         // the weights would be those of no single run
  continue_with,  // a new schedule from here on: allowed, and said
  ignore,         // does not touch the weights
};

/// A key of the configuration: model.n_ctx, train.lr, data.path, ...
struct ConfigKey {
  std::string name;
  std::string help;
  OnResume on_resume;
  std::function<ConfigValue(const ExperimentConfig&)> get;
  std::function<void(ExperimentConfig&, const ConfigValue&)> set;  // throws UsageError with the key and its rule
};

/// All keys, section by section.
const std::vector<ConfigKey>& config_keys();

/// Sets `key` (with or without its section) from text, as --set does. Throws UsageError for an unknown key, with a
/// suggestion, and for a value that breaks the key's rule.
void set_from_text(ExperimentConfig& config, const std::string& key, const std::string& text);

/// A value as TOML writes it.
std::string to_toml(const ConfigValue& value);

/// The whole configuration as TOML: program and preset, then [model], [train] and [data].
std::string to_toml(const ExperimentConfig& config);

/// Overwrites `config` with the keys that a TOML text gives. `origin` names it in errors. Throws UsageError with the
/// line for a syntax error, an unknown section or key (with a suggestion), a wrong type, a value out of range, or
/// another program than config.program.
void merge_toml(ExperimentConfig& config, const std::string& text, const std::string& origin);

/// The preset that a TOML text names, or nothing.
std::string preset_of_toml(const std::string& text, const std::string& origin);

/// Key to value, as TOML writes it; the inverse overwrites `config`.
std::map<std::string, std::string> to_map(const ExperimentConfig& config);
void merge_map(ExperimentConfig& config, const std::map<std::string, std::string>& values, const std::string& origin);

/// Throws UsageError unless the model and recipe make sense together.
void validate(const ExperimentConfig& config);

}  // namespace lacuna
