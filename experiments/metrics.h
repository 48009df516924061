#pragma once
// The numbers of a run, one JSON object a line.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace lacuna {

/// What one optimizer step measured. `step` counts finished steps, from 1.
struct StepMetrics {
  int64_t step = 0, samples = 0, tokens = 0;  // samples and tokens so far
  double loss_nats = 0.0;                     // of this step's batch, before its update
  double lr = 0.0;
  double grad_norm = 0.0;  // before clipping, without the loss scale; not finite: the step was skipped
  double loss_scale = 1.0;
  double step_ms = 0.0;
  double tokens_per_s = 0.0;
  int64_t memory_bytes = 0;  // highest so far, all categories together
  bool slower_than_dense = false;  // the run's attention than dense attention of its length, as measured before it
};

/// What one evaluation measured.
struct EvalMetrics {
  int64_t step = 0;
  std::string split;    // "valid" or "test"
  std::string weights;  // "ema" or "last"
  double bits_per_dim = 0.0;
  int64_t n = 0;  // tokens scored
};

/// metrics.jsonl. Lines are appended whole; those beyond the step that a run resumes from are dropped, so a curve has
/// one value a step.
class MetricsFile {
 public:
  /// Keeps the lines of steps up to `resume_step` (0: none) that an earlier process wrote, and opens for appending.
  MetricsFile(const std::filesystem::path& path, int64_t resume_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  /// A grad_norm that is not finite becomes null. mfu is null: on a CPU there is no agreed peak to be a fraction of.
  void write(const StepMetrics& metrics);
  void write(const EvalMetrics& metrics);

  /// The evaluation of `split` with `weights` at `step` that the file holds, if any.
  std::optional<EvalMetrics> find(const std::string& split, const std::string& weights, int64_t step) const;

 private:
  void append(const std::string& line);

  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace lacuna
