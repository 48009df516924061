#pragma once
// The program `patterns`: its command line and its commands.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "experiments/console.h"
#include "experiments/pattern_drawing.h"
#include "ops/sparse_attention/analysis/check.h"

namespace lacuna {

enum class PatternCommand : uint8_t { check, cost, draw, help };

struct PatternOptions {
  PatternCommand command = PatternCommand::help;
  std::string help;  // for PatternCommand::help: what to print

  AttentionPattern attention;
  int64_t n = 0, n_heads = 1;
  std::vector<TileSize> tiles;

  // check
  int64_t layers = 0;           // through which everything should be reached
  std::optional<int64_t> head;  // the only one looked at
  int64_t all_pairs_limit = kAllPairsLimit;
  bool allow_empty = false, allow_unreachable = false;

  // cost
  int64_t d_qk = 64, d_v = 64;  // of one head
  DType dtype = DType::f32;

  // draw
  std::vector<PatternDrawing> drawings;    // instead of all above
  std::vector<std::filesystem::path> out;  // files to write; none: text
};

/// Parses a command line. Throws UsageError for an unknown command or flag (with a suggestion), a missing or malformed
/// value, or a pattern that is none.
PatternOptions parse_pattern_options(const std::vector<std::string>& arguments);

/// What `check` prints; adds to `violations` one for each claim that does not hold.
std::string check_report(const PatternOptions& options, int64_t& violations);

/// What `cost` prints.
std::string cost_report(const PatternOptions& options);

/// Writes the files that `draw` makes, and returns what it prints: their names, or the drawings themselves for `out`.
std::string draw_patterns(const PatternOptions& options, const Terminal& out);

}  // namespace lacuna
