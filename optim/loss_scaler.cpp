#include "optim/loss_scaler.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace lacuna {
namespace {

constexpr double kGrowth = 2.0, kBackoff = 0.5;
constexpr int64_t kGrowthInterval = 2000;
constexpr double kLowestScale = 0x1p-14, kLargestScale = 0x1p24;  // the seed of backward is f32, its share of a row f16

}  // namespace

LossScaler::LossScaler(bool dynamic) : dynamic_(dynamic) {
  if (!dynamic) state_.scale = 1.0;
}

bool LossScaler::update(double norm) {
  if (std::isfinite(norm)) {
    if (dynamic_ && ++state_.finite_steps == kGrowthInterval) {
      state_.scale = std::min(kLargestScale, kGrowth * state_.scale);
      state_.finite_steps = 0;
    }
    return true;
  }
  check(dynamic_, "loss_scaler: the gradient is not finite");
  check(state_.scale > kLowestScale, "loss_scaler: the gradient is not finite even at the lowest scale, ",
        kLowestScale);
  state_.scale *= kBackoff;
  state_.finite_steps = 0;
  return false;
}

}  // namespace lacuna
