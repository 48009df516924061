#include "optim/schedule.h"

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace lacuna {

double learning_rate(const ScheduleConfig& config, int64_t step) {
  const auto [lr, warmup_steps, total_steps] = config;
  check_usage(lr >= 0.0, "schedule: lr must be at least 0, got ", lr);
  check_usage(warmup_steps >= 0 && total_steps >= 0, "schedule: warmup_steps and total_steps must be at least 0, got ",
              warmup_steps, " and ", total_steps);
  if (step >= total_steps) return 0.0;
  if (step < warmup_steps) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  const double progress = static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps);
  return lr * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace lacuna
