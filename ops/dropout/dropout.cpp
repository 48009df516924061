#include "ops/dropout/dropout.h"

#include <cmath>

#include "core/dispatch.h"
#include "ops/dropout/dropout_kernels.h"

namespace lacuna {

Variable dropout(const Variable& x, float rate, int64_t op, const Run& run) {
  const auto threshold = rate >= 0.0f && rate < 1.0f ? std::lround(rate * 65536.0f) : 65536;
  check(threshold < 65536, "dropout: rate must be in [0, 1) when rounded to a multiple of 2^-16, got ", rate);
  check(op >= 0 && op < 65536, "dropout: op must be in [0, 65536), got ", op);
  check(x.shape().rank() >= 1, "dropout: x must have a batch dimension, got ", x.shape());
  if (!run.training || threshold == 0) return x;

  const DropoutMask mask{Rng(run.seed, RandomPurpose::dropout),
                         {.step = run.step, .sample = run.first_sample, .op = op},
                         static_cast<uint32_t>(threshold)};
  Tensor y = empty_like(x.value());
  LACUNA_DISPATCH(x.device(), dropout, x.value(), mask, y);

  auto backward = [mask](const Tensor& dy, const Needs&) {
    Tensor dx = empty_like(dy);
    LACUNA_DISPATCH(dy.device(), dropout, dy, mask, dx);
    return Grads{dx};
  };
  return record("dropout", y, {x}, backward);
}

}  // namespace lacuna
