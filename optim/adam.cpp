#include "optim/adam.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "optim/kernels.h"

namespace lacuna {
namespace {

// As AdamBuffers::pieces: inside one leaf, of at most kPieceSize elements.
Tensor pieces_of(const Parameters& parameters) {
  std::vector<int64_t> numbers;
  for (const Parameters::Entry& leaf : parameters.leaves())
    for (int64_t done = 0; done < leaf.shape.numel(); done += kPieceSize)
      numbers.insert(numbers.end(),
                     {leaf.offset + done, std::min(kPieceSize, leaf.shape.numel() - done), leaf.shape.rank() >= 2});
  const MemoryScope scope(MemoryCategory::optimizer);
  const Tensor pieces = from_vector(numbers, {static_cast<int64_t>(numbers.size()) / 3, 3});
  return to_device(pieces, parameters.values().device());
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

void Adam::step(const AdamStep& step) {
  ++steps_;
  const auto t = static_cast<double>(steps_);
  const AdamFactors factors{.scale = step.scale,
                            .max_norm = step.max_norm,
                            .beta1 = config_.beta1,
                            .beta2 = config_.beta2,
                            .eps = config_.eps,
                            .lr = step.lr,
                            .correction1 = 1.0 - std::pow(config_.beta1, t),
                            .correction2 = 1.0 - std::pow(config_.beta2, t),
                            .weight_decay = config_.weight_decay,
                            .ema_decay = step.ema ? step.ema->next_decay() : 0.0};
  const Tensor average = step.ema ? step.ema->average() : Tensor();
  LACUNA_DISPATCH(parameters_.values().device(), adam_update, factors,
                  AdamBuffers{pieces_, parameters_.gradients(), parameters_.values(), exp_avg_, exp_avg_sq_,
                              step.sum_of_squares, average, parameters_.rounded()});
}

}  // namespace lacuna
