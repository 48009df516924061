#pragma once
#include "core/dispatch.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace lacuna {

/// Which elements of a batch a dropout zeroes.
struct DropoutMask {
  Rng rng;
  Rng::Place first;    // of the batch's first row; row b is sample first.sample + b
  uint32_t threshold;  // 16-bit words below it drop their element: rate * 2^16, in 1..65535

  double scale() const { return 65536.0 / (65536.0 - threshold); }  // 1 / (1 - rate)
};

/// y = x scaled where the mask keeps it, 0 elsewhere. Its own gradient: dx from dy is the same map.
LACUNA_KERNEL(void dropout(Stream stream, const Tensor& x, const DropoutMask& mask, const Tensor& y))

}  // namespace lacuna
