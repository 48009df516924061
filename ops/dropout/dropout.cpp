#include "ops/dropout/dropout.h"

#include <cmath>

#include "core/dispatch.h"
#include "ops/add/add.h"
#include "ops/dropout/dropout_kernels.h"

namespace lacuna {

DropoutMask dropout_mask(float rate, int64_t op, const Run& run) {
  const auto threshold = rate >= 0.0f && rate < 1.0f ? std::lround(rate * 65536.0f) : 65536;
  check(threshold < 65536, "dropout: rate must be in [0, 1) when rounded to a multiple of 2^-16, got ", rate);
  check(op >= 0 && op < 65536, "dropout: op must be in [0, 65536), got ", op);
  return {Rng(run.seed, RandomPurpose::dropout),
          {.step = run.step, .sample = run.first_sample, .op = op},
          run.training ? static_cast<uint32_t>(threshold) : 0};
}

Variable dropout(const Variable& x, float rate, int64_t op, const Run& run) {
  const DropoutMask mask = dropout_mask(rate, op, run);
  check(x.shape().rank() >= 1, "dropout: x must have a batch dimension, got ", x.shape());
  if (!mask.drops()) return x;

  Tensor y = empty_like(x.value());
  LACUNA_DISPATCH(x.device(), dropout, x.value(), Tensor(), mask, y);

  auto backward = [mask](const Tensor& dy, const Needs&) {
    Tensor dx = empty_like(dy);
    LACUNA_DISPATCH(dy.device(), dropout, dy, Tensor(), mask, dx);
    return Grads{dx};
  };
  return record("dropout", y, {x}, backward);
}

Variable add_dropout(const Variable& residual, const Variable& x, float rate, int64_t op, const Run& run) {
  const DropoutMask mask = dropout_mask(rate, op, run);
  if (!mask.drops()) return residual + x;
  check_same_dtype_and_device("add_dropout", {residual, x});
  check(x.shape().rank() >= 1 && x.shape() == residual.shape(),
        "add_dropout: x must have a batch dimension and the shape of residual, got ", x.shape(), " and ",
        residual.shape());

  Tensor y = empty_like(x.value());
  LACUNA_DISPATCH(x.device(), dropout, x.value(), residual.value(), mask, y);

  auto backward = [mask](const Tensor& dy, const Needs&) {
    Tensor dx = empty_like(dy);
    LACUNA_DISPATCH(dy.device(), dropout, dy, Tensor(), mask, dx);
    return Grads{dy, dx};
  };
  return record("add_dropout", y, {residual, x}, backward);
}

}  // namespace lacuna
