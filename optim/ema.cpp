#include "optim/ema.h"

#include <algorithm>

#include "core/dispatch.h"
#include "optim/kernels.h"

namespace lacuna {
namespace {

Tensor copy_for_optimizer(const Tensor& values) {
  const MemoryScope scope(MemoryCategory::optimizer);
  return clone(values);
}

}  // namespace

Ema::Ema(const Parameters& parameters, double decay)
    : parameters_(parameters), decay_(decay), average_(copy_for_optimizer(parameters.values())) {
  check_usage(decay >= 0.0 && decay < 1.0, "ema: decay must be in [0, 1), got ", decay);
}

double Ema::next_decay() {
  const auto t = static_cast<double>(updates_++);
  return std::min(decay_, (1.0 + t) / (10.0 + t));
}

void Ema::update() {
  LACUNA_DISPATCH(average_.device(), average_update, next_decay(), parameters_.values(), average_);
}

void Ema::swap() const {
  LACUNA_DISPATCH(average_.device(), exchange, parameters_.values(), average_);
  parameters_.update_rounded();
}

}  // namespace lacuna
