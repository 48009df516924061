#include "optim/adam.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "optim/kernels.h"

namespace lacuna {
namespace {

std::vector<Piece> pieces_of(const Parameters& parameters) {
  std::vector<Piece> pieces;
  for (const Parameters::Entry& entry : parameters.entries())
    for (int64_t done = 0; done < entry.shape.numel(); done += kPieceSize)
      pieces.push_back({entry.offset + done, std::min(kPieceSize, entry.shape.numel() - done),
                        /*decays=*/entry.shape.rank() >= 2});
  return pieces;
}

Tensor zero_moments(const Tensor& values) {
  const MemoryScope scope(MemoryCategory::optimizer);
  return zeros_like(values);
}

}  // namespace

Adam::Adam(const Parameters& parameters, const AdamConfig& config)
    : parameters_(parameters),
      config_(config),
      pieces_(pieces_of(parameters)),
      exp_avg_(zero_moments(parameters.values())),
      exp_avg_sq_(zero_moments(parameters.values())) {
  for (const double beta : {config.beta1, config.beta2})
    check_usage(beta >= 0.0 && beta < 1.0, "adam: beta1 and beta2 must be in [0, 1), got ", beta);
  check_usage(config.eps > 0.0, "adam: eps must be above 0, got ", config.eps);
  check_usage(config.weight_decay >= 0.0, "adam: weight_decay must be at least 0, got ", config.weight_decay);
}

void Adam::step(double lr, double scale) {
  ++steps_;
  const auto t = static_cast<double>(steps_);
  const AdamFactors factors{.scale = scale,
                            .beta1 = config_.beta1,
                            .beta2 = config_.beta2,
                            .eps = config_.eps,
                            .lr = lr,
                            .correction1 = 1.0 - std::pow(config_.beta1, t),
                            .correction2 = 1.0 - std::pow(config_.beta2, t),
                            .weight_decay = config_.weight_decay};
  LACUNA_DISPATCH(parameters_.values().device(), adam_update, pieces_, factors, parameters_.gradients(),
                  parameters_.values(), exp_avg_, exp_avg_sq_);
}

}  // namespace lacuna
