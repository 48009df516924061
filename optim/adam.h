#pragma once
// Adam with decoupled weight decay.

#include "autograd/parameters.h"
#include "optim/ema.h"

namespace lacuna {

struct AdamConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0.01;  // decoupled: p -= lr * weight_decay * p, on parameters of rank >= 2
};

/// What changes from step to step.
struct AdamStep {
  double lr = 0.0;
  double scale = 1.0;           // of the gradients: 1 / loss scale
  Tensor sum_of_squares = {};   // of the gradients (gradient_sum_of_squares): with it they are clipped to max_norm after
  double max_norm = 0.0;        // the scaling, and when it is not finite nothing is updated
  Ema* ema = nullptr;           // updated in the same pass
};

/// Adam (Kingma & Ba 2015) with bias correction and decoupled decay (Loshchilov & Hutter 2019):
///
///   g = scale * gradient                      `scale` is the clip factor, computed on the device
///   m = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2
///   p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) - lr * weight_decay * p
///
/// Moments are flat, laid out as Parameters::values(), and counted under MemoryCategory::optimizer.
class Adam {
 public:
  /// Throws UsageError for a factor out of range. `parameters` must live as long as this.
  Adam(const Parameters& parameters, const AdamConfig& config);

  /// One update of all parameters, and of their rounded copy, from their gradients, in one pass over memory; t counts
  /// from 1. Enqueued on a GPU: nothing waits for the norm.
  void step(const AdamStep& step);
  void step(double lr, double scale = 1.0) { step(AdamStep{.lr = lr, .scale = scale}); }

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  const Tensor& exp_avg() const { return exp_avg_; }        // m
  const Tensor& exp_avg_sq() const { return exp_avg_sq_; }  // v

 private:
  const Parameters& parameters_;
  AdamConfig config_;
  Tensor pieces_;
  Tensor exp_avg_, exp_avg_sq_;
  int64_t steps_ = 0;
};

}  // namespace lacuna
