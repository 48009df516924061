#pragma once
// What the programs share.

#include <functional>
#include <memory>
#include <string>

#include "data/dataset.h"
#include "experiments/config.h"
#include "experiments/options.h"

namespace lacuna {

/// What the tokens of an experiment are, and so how samples are shown.
enum class Medium : uint8_t { text, image };

/// A program: one kind of data, and what differs with it.
struct Experiment {
  std::string program;  // its name on the command line
  std::string summary;  // one line for --help
  Medium medium = Medium::text;
  std::string default_preset = "laptop";
  std::function<std::unique_ptr<Dataset>(const std::filesystem::path& path, int64_t n_ctx)> open_data;
  std::string data_help;     // of --data
  std::string default_data;  // used without --data; empty: none
  std::string missing_data;  // what to say when there is no default
  std::string prompt_help;   // of --prompt
};

/// The whole main function of a program: parses the command line, runs the command, prints errors to stderr as one line
/// and returns the exit code: 0 done or stopped cleanly, 1 failure, 2 misuse or bad configuration.
int run_experiment(const Experiment& experiment, int argc, char** argv);

/// Opens the data of a configuration, which gets the path of the default if it names none. Throws UsageError when there
/// is none to open.
std::unique_ptr<Dataset> open_dataset(const Experiment& experiment, ExperimentConfig& config);

/// The commands. Each returns an exit code.
int train_command(const Experiment& experiment, const Options& options);
int eval_command(const Experiment& experiment, const Options& options);
int sample_command(const Experiment& experiment, const Options& options);
int plan_command(const Experiment& experiment, const Options& options);
int parity_command(const Experiment& experiment, const Options& options);

/// A model with the weights that --checkpoint names (by default the newest of the run of the preset), on the device
/// that choose_device() finds under this name, and its configuration.
struct LoadedModel {
  ExperimentConfig config;
  std::filesystem::path weights;  // the file they come from
  std::optional<RunState> state;  // of a whole checkpoint
  std::unique_ptr<SparseTransformer> model;
};
LoadedModel load_model(const Experiment& experiment, const Options& options);

/// Where the run of a configuration lives: --out, or runs/<program>-<preset>.
std::filesystem::path default_run_folder(const ExperimentConfig& config);

/// The lines of `plan` for a configuration: a table of parameters, arithmetic and memory.
std::string describe_plan(const ExperimentConfig& config, int64_t batch, int64_t ranks);

}  // namespace lacuna
