#pragma once
// The learning rate over a run.

#include <cstdint>

namespace lacuna {

struct ScheduleConfig {
  double lr = 0.0;           // the highest rate
  int64_t warmup_steps = 0;  // linear from 0
  int64_t total_steps = 0;   // the cosine reaches 0 here
};

/// The rate of step `step` (from 0): lr (step + 1) / warmup_steps while step < warmup_steps, then
/// lr (1 + cos(pi (step - warmup_steps) / (total_steps - warmup_steps))) / 2, and 0 from total_steps on.
/// Throws UsageError for a negative field.
/// Source: Sec. 5.6, 6 (linear warm-up, cosine decay as in GPT).
double learning_rate(const ScheduleConfig& config, int64_t step);

}  // namespace lacuna
