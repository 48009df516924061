#pragma once
// The command line.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "experiments/config.h"
#include "experiments/run_state.h"

namespace lacuna {

enum class Command : uint8_t { train, eval, sample, plan, parity, help };

/// What a command line says, before presets and files are looked at. Numbers are checked, names are not resolved yet.
struct Options {
  std::vector<std::string> arguments;  // argv
  Command command = Command::help;
  std::string help;  // for Command::help: what to print

  // Every command.
  std::string preset;  // empty: not given
  std::filesystem::path config_file;
  std::vector<std::string> set;  // key=value
  std::optional<DType> dtype;
  std::optional<int64_t> seed;
  std::string device = "auto";  // auto, cpu or cuda
  int threads = 0;              // 0: the system's choice

  // train
  std::string data;
  std::filesystem::path out;
  std::optional<int64_t> steps, batch_tokens;
  std::string resume = "auto";  // auto, none or a checkpoint
  bool dry_run = false, print_config = false;

  // eval, sample, parity
  std::filesystem::path checkpoint;  // empty: not given
  Weights weights = Weights::averaged;
  std::string split = "test";
  std::optional<int64_t> min_context, windows;
  std::optional<int64_t> count, length;
  std::optional<double> temperature;
  std::string prompt;
  std::filesystem::path tokens;
  std::optional<int64_t> batch;  // parity, plan
  bool init_only = false;

  // plan
  int64_t ranks = 1;
  std::optional<int64_t> device_memory;
};

/// What the command line needs to know of a program to describe it.
struct ProgramHelp {
  std::string program, summary, data_help, prompt_help, default_preset;
  bool has_default_data = true;  // train works without --data
};

/// Parses a command line. Throws UsageError for an unknown command or flag (with a suggestion), a missing or malformed
/// value, or something that this build does not have.
Options parse_options(const ProgramHelp& help, const std::vector<std::string>& arguments);

/// The configuration of a run: the preset (the one that --config names, or the default), then --config, then --set,
/// then flags. Throws UsageError.
ExperimentConfig resolve_config(const Options& options, const std::string& program, const std::string& default_preset);

/// The same with a checkpoint's configuration in place of a preset.
ExperimentConfig resolve_config(const Options& options, const ExperimentConfig& checkpoint);

}  // namespace lacuna
