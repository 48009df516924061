#pragma once
// The configurations that have a name.

#include <string>
#include <vector>

#include "experiments/config.h"

namespace lacuna {

/// A named configuration of one program.
struct Preset {
  std::string summary;      // one line for --help
  ExperimentConfig config;  // program and preset name inside
};

/// All presets: `laptop` of each program, which trains in minutes on two CPU cores, and the rows of the paper's tables.
/// Presets of programs that this build does not have can be planned, not trained.
const std::vector<Preset>& all_presets();

/// The preset `name` of `program`; one of another program when `any_program` and `program` has none of that name.
/// Throws UsageError with a suggestion.
const Preset& find_preset(const std::string& program, const std::string& name, bool any_program = false);

}  // namespace lacuna
