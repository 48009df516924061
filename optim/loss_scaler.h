#pragma once
// Dynamic loss scaling for f16.

#include <cstdint>

namespace lacuna {

/// The factor of the loss that keeps small gradients above f16's range, Sec. 5.6: doubled after 2,000 finite gradients
/// in a row, halved at one that is not finite, whose step is skipped. These are the numbers of PyTorch's GradScaler.
class LossScaler {
 public:
  /// What a checkpoint keeps.
  struct State {
    double scale = 65536.0;
    int64_t finite_steps = 0;  // in a row, since the scale last changed
    friend bool operator==(const State&, const State&) = default;
  };

  /// With `dynamic` false the scale is 1 and stays, and update() refuses a gradient that is not finite.
  explicit LossScaler(bool dynamic);

  double scale() const { return state_.scale; }

  /// Whether the step with a gradient of this norm is to be taken. Throws Error when the gradient is not finite and
  /// the scale cannot fall any further (below 2^-14 the loss itself would vanish), or is not dynamic.
  bool update(double norm);

  const State& state() const { return state_; }
  void set_state(const State& state) { state_ = state; }

 private:
  bool dynamic_;
  State state_;
};

}  // namespace lacuna
