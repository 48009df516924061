#pragma once
// What the tests of programs share: commands, a run whose steps take a millisecond, and what it leaves.

#include <doctest/doctest.h>

#include <sstream>

#include <nlohmann/json.hpp>

#include "core/file.h"
#include "experiments/run_state.h"
#include "tests/experiments/process.h"
#include "tests/support/expect_error.h"

namespace lacuna {
namespace fs = std::filesystem;

using Strings = std::vector<std::string>;

inline const std::string kEnwik8 = LACUNA_BINARY_DIR "/bin/enwik8", kCifar10 = LACUNA_BINARY_DIR "/bin/cifar10",
                         kPatterns = LACUNA_BINARY_DIR "/bin/patterns";
inline constexpr const char* kGolden = LACUNA_SOURCE_DIR "/tests/golden";

// 4 KB of text to learn from.
inline fs::path write_text(const TemporaryFolder& folder) {
  std::string text;
  while (text.size() < 4096) text += concat("line ", text.size(), ": the quick brown fox\n");
  return folder.write("data.txt", text);
}

// A run whose steps take a millisecond.
inline Strings tiny_train(const TemporaryFolder& folder, const std::string& out, const Strings& more = {}) {
  return Strings{kEnwik8,   "train",
                 "--data",  (folder.path() / "data.txt").string(),
                 "--out",   (folder.path() / out).string(),
                 "--steps", "20",
                 "--set",   "n_ctx=64",
                 "--set",   "position_extents=8,8",
                 "--set",   "d_model=16",
                 "--set",   "n_layers=2",
                 "--set",   "n_heads=2",
                 "--set",   "dropout=0.1",
                 "--set",   "attention=local(window=8), column(stride=8)",
                 "--set",   "batch=2",
                 "--set",   "warmup_steps=2",
                 "--set",   "eval_every=5",
                 "--set",   "checkpoint_every=5",
                 "--set",   "sample_length=8",
                 "--set",   "sample_count=1"} +
         more;
}

// Everything that training computes, at step 20.
inline std::string weights_of(const fs::path& run, int64_t step = 20) {
  const fs::path checkpoint = run / "checkpoints" / checkpoint_name(step);
  return read_file(checkpoint / "model.safetensors") + read_file(checkpoint / "ema.safetensors") +
         read_file(checkpoint / "optimizer-00000-of-00001.safetensors");
}

// Steps of metrics.jsonl that train, and that evaluate the validation split.
inline std::pair<std::vector<int64_t>, std::vector<int64_t>> steps_of(const fs::path& run) {
  std::pair<std::vector<int64_t>, std::vector<int64_t>> steps;
  std::istringstream lines(read_file(run / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.value("eval", "") == "test") continue;
    (json.contains("eval") ? steps.second : steps.first).push_back(json.at("step"));
  }
  return steps;
}

inline std::vector<int64_t> one_to(int64_t n) {
  std::vector<int64_t> steps;
  for (int64_t i = 1; i <= n; ++i) steps.push_back(i);
  return steps;
}

inline int64_t newest_step(const fs::path& run) {
  const auto checkpoints = list_checkpoints(run / "checkpoints");
  return checkpoints.empty() ? 0 : std::stoll(checkpoints.front().filename().string().substr(5));
}

inline bool has_leftovers(const fs::path& run) {
  for (const fs::path& folder : {run, run / "checkpoints", run / "samples"})
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(".") && name != ".lock") return true;
    }
  return false;
}

// Checks exit code and message of a command, and that the message is what a person can read: no crash, one cause.
inline void expect(const Strings& command, int code, std::string_view message) {
  const Outcome outcome = run(command);
  CAPTURE(outcome.out);
  CAPTURE(outcome.err);
  CHECK(outcome.code == code);
  CHECK_MESSAGE(contains(code == 0 ? outcome.out : outcome.err, message), "expected: " << std::string(message));
}

}  // namespace lacuna
