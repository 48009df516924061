#pragma once
#include "core/dispatch.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "ops/run.h"

namespace lacuna {

/// Which elements of a batch a dropout zeroes; none by default.
struct DropoutMask {
  Rng rng{0, RandomPurpose::dropout};
  Rng::Place first = {};   // of the batch's first row; row b is sample first.sample + b
  uint32_t threshold = 0;  // 16-bit words below it drop their element: rate * 2^16, in 0..65535

  bool drops() const { return threshold > 0; }
  double scale() const { return 65536.0 / (65536.0 - threshold); }  // 1 / (1 - rate)
};

/// The mask of dropout.h's arguments, which drops nothing outside training. Throws Error when one is out of range.
DropoutMask dropout_mask(float rate, int64_t op, const Run& run);

/// y = residual + x scaled where the mask keeps it, residual elsewhere; 0 where `residual` is undefined. Without a
/// residual it is its own gradient: dx from dy is the same map.
LACUNA_KERNEL(void dropout(Stream stream, const Tensor& x, const Tensor& residual, const DropoutMask& mask,
                           const Tensor& y))

}  // namespace lacuna
