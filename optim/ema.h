#pragma once
// Averaged weights.

#include "autograd/parameters.h"

namespace lacuna {

/// Exponential moving average of all parameters: average = decay * average + (1 - decay) * value. The first updates
/// use min(decay, (1 + t) / (10 + t)), t the number of updates before, so that early averages forget the
/// initialization.
class Ema {
 public:
  /// The average begins as the parameters are now. Throws UsageError unless decay is in [0, 1). `parameters` must live
  /// as long as this.
  Ema(const Parameters& parameters, double decay);

  void update();

  /// The decay of the next update, counted as done: for Adam, which averages in its own pass.
  double next_decay();
  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }

  /// Flat, as Parameters::values(); counted under MemoryCategory::optimizer.
  const Tensor& average() const { return average_; }

  /// Exchanges the parameters with their averages; done twice it changes nothing. Evaluation runs in between.
  void swap() const;

 private:
  const Parameters& parameters_;
  double decay_;
  Tensor average_;
  int64_t updates_ = 0;
};

}  // namespace lacuna
