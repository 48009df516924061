#include "experiments/experiment.h"

#include <iostream>
#include <new>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "experiments/environment.h"
#include "experiments/signals.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

bool is_utf8(const std::string& text) {
  try {
    return !nlohmann::json(text).dump().empty();
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

}  // namespace

std::unique_ptr<Dataset> open_dataset(const Experiment& experiment, ExperimentConfig& config) {
  if (config.data_path.empty()) config.data_path = experiment.default_data;
  check_usage(!config.data_path.empty(), experiment.missing_data);
  check_usage(is_utf8(config.data_path), "--data ", config.data_path,
              ": the path must be valid UTF-8, for config.toml and checkpoints name it; rename it, or link to it");
  std::unique_ptr<Dataset> data = experiment.open_data(config.data_path, config.model.n_ctx);
  check_usage(data->n_ctx() == config.model.n_ctx, "model.n_ctx must be ", data->n_ctx(), " for this data, got ",
              config.model.n_ctx);
  return data;
}

fs::path default_run_folder(const ExperimentConfig& config) {
  return fs::path("runs") / (config.program + "-" + config.preset);
}

LoadedModel load_model(const Experiment& experiment, const Options& options) {
  fs::path path = options.checkpoint;
  Options overrides = options;
  if (path.empty()) {
    const ExperimentConfig named = resolve_config(options, experiment.program, experiment.default_preset);
    path = default_run_folder(named);
    check_usage(fs::exists(path), "no run in ", path.string(), "; give --checkpoint, or train first");
    overrides.preset.clear();
  }
  CheckpointSource source = find_checkpoint(path, options.weights, experiment.program);
  LoadedModel loaded;
  loaded.config = resolve_config(overrides, source.config);
  const DType dtype = loaded.config.train.dtype;
  loaded.model = std::make_unique<SparseTransformer>(loaded.config.model, loaded.config.train.seed, dtype,
                                                     choose_device(options.device, {loaded.config.model, dtype}));
  load_weights(source.weights, *loaded.model);
  loaded.weights = std::move(source.weights);
  loaded.state = std::move(source.state);
  return loaded;
}

int run_experiment(const Experiment& experiment, int argc, char** argv) {
  ignore_write_signals();
  const auto fail_with = [&](const std::string& message, int code) {
    std::cerr << experiment.program << ": " << message << std::endl;
    return code;
  };
  try {
    const Options options = parse_options({experiment.program, experiment.summary, experiment.data_help,
                                           experiment.prompt_help, experiment.default_preset,
                                           !experiment.default_data.empty()},
                                          std::vector<std::string>(argv, argv + argc));
    set_threads(options.threads);
    switch (options.command) {
      case Command::help: std::cout << options.help << std::flush; return 0;
      case Command::train: return train_command(experiment, options);
      case Command::eval: return eval_command(experiment, options);
      case Command::sample: return sample_command(experiment, options);
      case Command::plan: return plan_command(experiment, options);
      case Command::parity: return parity_command(experiment, options);
    }
    return 1;  // not reached: every command is above
  } catch (const UsageError& error) {
    return fail_with(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail_with("out of memory on the host; `plan` tells what a configuration needs", 1);
  } catch (const std::exception& error) {
    return fail_with(error.what(), 1);
  }
}

}  // namespace lacuna
